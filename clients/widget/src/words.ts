/** What the component says, in its two languages. */
export interface Words {
  group: string;
  up: string;
  down: string;
  why: string;
  comment: string;
  send: string;
  close: string;
  sending: string;
  thanks: string;
  sent: string;
  retracted: string;
  late: string;
  counted: string;
  wrong: string;
  gone: string;
  slower: string;
  failed: string;
  reasons: Readonly<Record<string, string>>;
}

const en: Words = {
  group: "Rate this answer",
  up: "Good answer",
  down: "Bad answer",
  why: "Why? (optional)",
  comment: "Comment (optional)",
  send: "Send",
  close: "Close",
  sending: "Sending…",
  thanks: "Thank you. Your vote is counted.",
  sent: "Thank you for the details.",
  retracted: "Your vote is taken back.",
  late: "It is too late to rate this answer.",
  counted: "This answer was rated already.",
  wrong: "This answer cannot be rated here.",
  gone: "This answer no longer exists.",
  slower: "A little slower, please. Try again shortly.",
  failed: "That did not work. Please try again.",
  reasons: {
    correct: "Correct",
    clear: "Clear",
    complete: "Complete",
    tone: "Good tone",
    wrong: "Wrong",
    unclear: "Unclear",
    incomplete: "Incomplete",
    "off-topic": "Off topic",
    "too-long": "Too long",
    harmful: "Harmful",
  },
};

const zh: Words = {
  group: "评价此回答",
  up: "好的回答",
  down: "不好的回答",
  why: "为什么？（可选）",
  comment: "评论（可选）",
  send: "发送",
  close: "关闭",
  sending: "正在发送…",
  thanks: "谢谢，您的评价已记录。",
  sent: "谢谢您的补充说明。",
  retracted: "您的评价已撤回。",
  late: "此回答的评价时间已过。",
  counted: "此回答已经评价过了。",
  wrong: "此处无法评价这个回答。",
  gone: "此回答已不存在。",
  slower: "请慢一点，稍后再试。",
  failed: "操作未成功，请重试。",
  reasons: {
    correct: "正确",
    clear: "清楚",
    complete: "完整",
    tone: "语气好",
    wrong: "有错误",
    unclear: "不清楚",
    incomplete: "不完整",
    "off-topic": "答非所问",
    "too-long": "太长",
    harmful: "有害",
  },
};

export const REASONS = {
  up: ["correct", "clear", "complete", "tone"],
  down: ["wrong", "unclear", "incomplete", "off-topic", "too-long", "harmful"],
} as const;

/** The words for a language tag such as `zh-CN`; English for all others. */
export function wordsFor(language: string): Words {
  return /^zh\b/i.test(language) ? zh : en;
}

/** What to say to a refusal. The server's own text is never shown. */
export function refusalWords(words: Words, status: number): string {
  const said: Record<number, string> = {
    401: words.late,
    403: words.wrong,
    404: words.gone,
    409: words.counted,
    410: words.gone,
    429: words.slower,
  };
  return said[status] ?? words.failed;
}
