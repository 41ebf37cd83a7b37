// A question with its answers: one shown at a time, or two beside each other until one is preferred.
import { Icon } from "../shared/icons";
import { plain } from "../shared/plain";
import type { Speak, Word } from "../shared/words";
import { type Actions, AnswerView, Body, Spoken } from "./answer";
import type { Turn, Verdict } from "./history";

interface Props {
  turn: Turn;
  actions: Actions;
  show: (index: number) => void;
  prefer: (verdict: Verdict) => void;
  t: Speak;
}

export function TurnView({ turn, actions, show, prefer, t }: Props) {
  const answer = turn.answers[turn.shown];
  const open = turn.pair && !turn.verdict && turn.answers.every((one) => one.state !== "failed");
  return (
    <section class="turn">
      <div class="ask" dir="auto" role="group" aria-label={t("you")}>
        {plain(turn.ask)}
      </div>
      {open ? (
        <Pair turn={turn} prefer={prefer} t={t} />
      ) : (
        answer && (
          <>
            {turn.verdict && <p class="verdict">{t(SAID[turn.verdict])}</p>}
            <AnswerView key={turn.shown} answer={answer} actions={actions} t={t} />
            {turn.answers.length > 1 && <Pager turn={turn} show={show} t={t} />}
          </>
        )
      )}
    </section>
  );
}

const SAID: Record<Verdict, Word> = { left: "chosen", right: "chosen", good: "bothGoodSaid", bad: "bothBadSaid" };
const CHOICES: [Verdict, Word][] = [
  ["left", "leftBetter"],
  ["right", "rightBetter"],
  ["good", "bothGood"],
  ["bad", "bothBad"],
];

/** Two answers whose versions are not told until one is preferred: a name would sway the choice. */
function Pair({ turn, prefer, t }: { turn: Turn; prefer: (verdict: Verdict) => void; t: Speak }) {
  const settled = turn.answers.every((one) => one.state !== "streaming" && one.id);
  return (
    <div class="pair" role="group" aria-label={t("compareTitle")}>
      {turn.answers.slice(0, 2).map((answer, index) => (
        <article class="answer" key={index} aria-label={t(index ? "right" : "left")} aria-busy={!settled}>
          <p class="label">{t(index ? "right" : "left")}</p>
          <Body answer={answer} t={t} />
          <Spoken answer={answer} t={t} hidden />
        </article>
      ))}
      {settled && (
        <div class="choices">
          <p class="label">{t("compareTitle")}</p>
          {CHOICES.map(([verdict, word]) => (
            <button type="button" key={verdict} onClick={() => prefer(verdict)}>
              {t(word)}
            </button>
          ))}
        </div>
      )}
    </div>
  );
}

function Pager({ turn, show, t }: { turn: Turn; show: (index: number) => void; t: Speak }) {
  const { shown, answers } = turn;
  return (
    <div class="pager">
      <Icon name={t("before")} sign="before" disabled={!shown} onClick={() => show(shown - 1)} />
      <span>{t("answerOf", shown + 1, answers.length)}</span>
      <Icon name={t("after")} sign="after" disabled={shown === answers.length - 1} onClick={() => show(shown + 1)} />
    </div>
  );
}
