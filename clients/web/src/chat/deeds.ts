// What a person does in a conversation: ask, ask again, stop, rate, copy, prefer.
import { useRef } from "preact/hooks";
import { type Api, ApiError, type Said } from "../shared/api";
import type { Speak } from "../shared/words";
import { ask, blank, compare } from "./asking";
import type { Conversations } from "./conversations";
import type { Answer, Turn, Verdict, Vote } from "./history";

export interface Deeds {
  send: (text: string, two: boolean, against: string) => void;
  regenerate: (turn: Turn) => Promise<void>;
  stop: () => void;
  rate: (answer: Answer, vote: Vote | null) => Promise<boolean>;
  copy: (answer: Answer) => void;
  prefer: (turn: Turn, verdict: Verdict) => Promise<void>;
}

interface Place {
  api: Api;
  /** Whether the key may rate; else a feedback token does. */
  rates: boolean;
  kept: Conversations;
  say: (status: string) => void;
  t: Speak;
}

/** What the server is told of a vote; 0 stands for a correction without a thumb. */
function said(vote: Vote | null): Said {
  if (!vote) return { value: null };
  const { value, tags, comment, correction } = vote;
  const words = { ...(comment && { comment }), ...(correction && { correction }), ...(tags.length && { tags }) };
  return (value ? { value, ...words } : words) as Said;
}

/** Report what a person did. An event is a hint: losing one harms nobody. */
const report = ({ api, rates }: Place, event: Record<string, string>): void => {
  if (rates && event["response_id"]) void api.post("/v1/events", event).catch(() => undefined);
};

const failed = ({ say, t }: Place, error: unknown): void =>
  say(t("notSaved", error instanceof ApiError ? error.message : t("offline")));

async function rate(place: Place, answer: Answer, vote: Vote | null): Promise<boolean> {
  const { api, rates, kept, say, t } = place;
  try {
    if (rates) await api.vote(answer.id, said(vote));
    else answer.token = await api.voteByToken(answer.token ?? "", said(vote));
  } catch (error) {
    failed(place, error);
    return false;
  }
  if (vote) answer.vote = vote;
  else delete answer.vote;
  say(t(vote ? "saved" : "retracted"));
  kept.keep();
  return true;
}

async function prefer(place: Place, turn: Turn, verdict: Verdict): Promise<void> {
  try {
    await compare(place.api, turn, verdict);
    place.say(place.t("saved"));
  } catch (error) {
    failed(place, error);
  }
  place.kept.keep();
}

/** Make another answer of a turn. One that never came is replaced; others stay. */
async function regenerate(place: Place, turn: Turn, run: (turn: Turn, into: Answer[]) => Promise<void>): Promise<void> {
  const old = turn.answers[turn.shown]!;
  const made = blank();
  if (old.id) turn.answers.push(made);
  else turn.answers[turn.shown] = made;
  turn.shown = turn.answers.indexOf(made);
  await run(turn, [made]);
  if (made.id) report(place, { response_id: old.id, type: "regenerate", new_response_id: made.id });
}

export function useDeeds(place: Place): Deeds {
  const { api, kept, say, t } = place;
  const stopping = useRef<AbortController | null>(null);
  const run = async (turn: Turn, into: Answer[], against = ""): Promise<void> => {
    const control = new AbortController();
    stopping.current = control;
    say(t("thinking"));
    kept.redraw();
    kept.toEnd();
    await ask(api, kept.current, kept.current.turns.indexOf(turn), into, against, control.signal, kept.changed);
    const failed = into.every((answer) => answer.state === "failed");
    say(t(control.signal.aborted ? "stopped" : failed ? "noAnswer" : "finished"));
    kept.keep();
  };
  return {
    send: (text, two, against) => {
      const into = two ? [blank(), blank()] : [blank()];
      const turn: Turn = { ask: text, answers: into, shown: 0, ...(two && { pair: true }) };
      kept.current.turns.push(turn);
      kept.raise();
      void run(turn, into, against);
    },
    regenerate: (turn) => regenerate(place, turn, run),
    stop: () => stopping.current?.abort(),
    rate: (answer, vote) => rate(place, answer, vote),
    copy: (answer) => {
      void navigator.clipboard.writeText(answer.text).then(() => say(t("copied")));
      report(place, { response_id: answer.id, type: "copy" });
    },
    prefer: (turn, verdict) => prefer(place, turn, verdict),
  };
}
