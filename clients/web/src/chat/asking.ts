// Asking: one answer, or two beside each other, streamed into the conversation as they come.
import { type Api, ApiError, type Beside, type Chunk } from "../shared/api";
import { type Answer, type Conversation, messages, type Turn } from "./history";

export const blank = (): Answer => ({ id: "", text: "", version: "", state: "streaming" });

/** Choice k > 0 of a request has an id of its own. */
const idOf = (chunk: Chunk, index: number): string => (index ? `${chunk.id}.${index}` : chunk.id);

function hear(answers: Answer[], chunk: Chunk): void {
  for (const choice of chunk.choices) {
    const answer = answers[choice.index];
    if (!answer) continue;
    answer.id = idOf(chunk, choice.index);
    answer.version = chunk.model.split("@")[1] ?? chunk.model;
    answer.text += choice.delta.content ?? "";
    if (choice.finish_reason) answer.state = choice.finish_reason === "length" ? "cut" : "done";
  }
}

function end(answers: Answer[], state: "done" | "stopped" | "failed", why: Pick<Answer, "error" | "code"> = {}): void {
  for (const answer of answers) if (answer.state === "streaming") Object.assign(answer, why, { state });
}

const reason = (error: unknown): Pick<Answer, "error" | "code"> =>
  error instanceof ApiError ? { error: error.message, ...(error.code && { code: error.code }) } : {};

async function stream(
  api: Api,
  body: Record<string, unknown>,
  answers: Answer[],
  signal: AbortSignal,
  changed: () => void,
  told?: (beside: Beside) => void,
): Promise<void> {
  const note = (beside: Beside): void => {
    answers[0]!.token = beside.token;
    told?.(beside);
  };
  try {
    await api.chat({ ...body, n: answers.length }, signal, note, (chunk) => (hear(answers, chunk), changed()));
    end(answers, "done");
  } catch (error) {
    if (signal.aborted) end(answers, "stopped");
    else end(answers, "failed", reason(error));
  }
  changed();
}

/**
 * Ask turn `index` of a conversation; `into` are blank answers of it. With `against`, the second is by that model. Where
 * the server asks for it, the first answer of a turn gets a second one beside it, before its first word is shown.
 */
export async function ask(
  api: Api,
  conversation: Conversation,
  index: number,
  into: Answer[],
  against: string,
  signal: AbortSignal,
  changed: () => void,
): Promise<void> {
  const turn = conversation.turns[index]!;
  const body = { model: "policy", messages: messages(conversation.turns, index) };
  const [first, second] = into;
  if (!second) {
    let other: Promise<void> | undefined;
    await stream(api, body, into, signal, changed, ({ compareWith }) => {
      if (!compareWith || turn.answers.length > 1) return;
      const made = blank();
      turn.answers.push(made);
      turn.pair = true;
      other = stream(api, { ...body, model: compareWith }, [made], signal, changed);
    });
    return other;
  }
  if (!against) return stream(api, body, into, signal, changed);
  await Promise.all([
    stream(api, body, [first!], signal, changed),
    stream(api, { ...body, model: against }, [second], signal, changed),
  ]);
}

/** Say which of a turn's two answers was better. */
export async function compare(api: Api, turn: Turn, verdict: NonNullable<Turn["verdict"]>): Promise<void> {
  const [left, right] = turn.answers;
  const [chosen, rejected] = verdict === "right" ? [right, left] : [left, right];
  const tie = verdict === "good" || verdict === "bad" ? { tie: verdict } : {};
  await api.post("/v1/comparisons", { chosen: chosen!.id, rejected: rejected!.id, ...tie });
  turn.verdict = verdict;
  turn.shown = verdict === "right" ? 1 : 0;
}
