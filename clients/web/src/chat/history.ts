// Conversations as this browser keeps them. The server has its own record of each answer; this one is the person's.

export interface Vote {
  value: number;
  tags: string[];
  comment: string;
  correction: string;
}

export type State = "streaming" | "done" | "stopped" | "cut" | "failed";

export interface Answer {
  id: string;
  text: string;
  version: string;
  state: State;
  error?: string;
  /** The server's code of the error, where it has one. */
  code?: string;
  token?: string | null;
  vote?: Vote;
}

export type Verdict = "left" | "right" | "good" | "bad";

/** A question and its answers; `shown` is the one that the conversation goes on from. */
export interface Turn {
  ask: string;
  answers: Answer[];
  shown: number;
  pair?: boolean;
  verdict?: Verdict;
}

export interface Conversation {
  id: string;
  turns: Turn[];
}

const NAME = "plaudit.conversations";
const MOST = 100;

export function load(): Conversation[] {
  try {
    const kept = JSON.parse(localStorage.getItem(NAME) ?? "[]") as Conversation[];
    for (const answer of kept.flatMap((one) => one.turns).flatMap((turn) => turn.answers))
      if (answer.state === "streaming") answer.state = "stopped"; // the tab was closed while it spoke
    return kept;
  } catch {
    return [];
  }
}

/** Keep the newest; returns false where older ones had to go for want of room. */
export function save(conversations: Conversation[]): boolean {
  for (let count = Math.min(MOST, conversations.length); count >= 0; count = Math.floor(count / 2)) {
    try {
      localStorage.setItem(NAME, JSON.stringify(conversations.slice(0, count)));
      return count === Math.min(MOST, conversations.length);
    } catch {
      if (count === 0) return false;
    }
  }
  return false;
}

export const fresh = (): Conversation => ({ id: crypto.randomUUID(), turns: [] });

export function titleOf(conversation: Conversation): string {
  const first = conversation.turns[0]?.ask.trim() ?? "";
  return first.length > 48 ? `${first.slice(0, 47)}…` : first;
}

/** The messages that lead to turn `until`: questions and the answers that were gone on from, as corrected. */
export function messages(turns: Turn[], until: number): { role: string; content: string }[] {
  return turns.slice(0, until + 1).flatMap((turn, index) => {
    const answer = turn.answers[turn.shown];
    const ask = { role: "user", content: turn.ask };
    if (index === until || !answer || !answer.text) return [ask];
    return [ask, { role: "assistant", content: answer.vote?.correction || answer.text }];
  });
}
