// One answer: its text, who spoke, and what a person can say about it.
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { Icon } from "../shared/icons";
import { render as inert } from "../shared/markdown";
import type { Speak, Word } from "../shared/words";
import type { Answer, Vote } from "./history";

const TAGS: Record<"up" | "down", string[]> = {
  up: ["helpful", "correct", "clear", "concise"],
  down: ["wrong", "off_topic", "too_long", "too_short", "unclear", "refused", "unsafe"],
};

export function Markdown({ text }: { text: string }) {
  const place = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => place.current?.replaceChildren(inert(text)), [text]);
  return <div class="markdown" dir="auto" ref={place} />;
}

export interface Actions {
  rate: (answer: Answer, vote: Vote | null) => Promise<boolean>;
  copy: (answer: Answer) => void;
  regenerate?: () => void;
  mayRate: (answer: Answer) => boolean;
}

export function Spoken({ answer, t, hidden }: { answer: Answer; t: Speak; hidden?: boolean }) {
  const end: Partial<Record<Answer["state"], Word>> = { stopped: "stopped", cut: "cut" };
  const word = end[answer.state];
  return (
    <p class="spoken">
      {answer.version && !hidden && <span class="version">{t("version", answer.version)}</span>}
      {word && <span>{t(word)}</span>}
    </p>
  );
}

/** Why there is no answer. A conversation that has grown too long cannot go on, so say what can. */
const why = ({ error, code }: Answer, t: Speak): string =>
  code === "context_length_exceeded" ? t("tooLong") : error || t("offline");

export function Body({ answer, t }: { answer: Answer; t: Speak }) {
  if (answer.state === "failed")
    return (
      <>
        {answer.text && <Markdown text={answer.text} />}
        <p class="failed">{t("failed", why(answer, t))}</p>
      </>
    );
  if (!answer.text && answer.state === "streaming") return <p class="thinking">{t("thinking")}</p>;
  return <Markdown text={answer.text} />;
}

type Open = "none" | "reason" | "correct";

export function AnswerView({ answer, actions, t }: { answer: Answer; actions: Actions; t: Speak }) {
  const [open, setOpen] = useState<Open>("none");
  const vote = answer.vote;
  const settled = answer.state !== "streaming";
  const rateable = settled && answer.id !== "" && actions.mayRate(answer);
  const press = async (value: number): Promise<void> => {
    if (vote?.value === value) {
      setOpen("none");
      await actions.rate(answer, null); // all of it: thumb, reasons, comment, correction
      return;
    }
    const kept = { comment: vote?.comment ?? "", correction: vote?.correction ?? "" };
    if (await actions.rate(answer, { value, tags: [], ...kept })) setOpen("reason");
  };
  return (
    <article class="answer" aria-label={t("assistant")} aria-busy={!settled}>
      <Body answer={answer} t={t} />
      {vote?.correction && (
        <section class="correction" aria-label={t("corrected")}>
          <p class="label">{t("corrected")}</p>
          <Markdown text={vote.correction} />
        </section>
      )}
      <Spoken answer={answer} t={t} />
      {settled && (
        <div class="bar">
          {rateable && (
            <>
              <Icon name={t("up")} sign="up" pressed={vote?.value === 1} onClick={() => void press(1)} />
              <Icon name={t("down")} sign="down" pressed={vote?.value === -1} onClick={() => void press(-1)} />
              {vote && <Icon name={t("comment")} sign="comment" onClick={() => setOpen("reason")} />}
              <Icon name={t("correct")} sign="correct" onClick={() => setOpen("correct")} />
            </>
          )}
          <Icon name={t("copy")} sign="copy" onClick={() => actions.copy(answer)} />
          {actions.regenerate && <Icon name={t("regenerate")} sign="regenerate" onClick={actions.regenerate} />}
        </div>
      )}
      {open === "reason" && vote && (
        <Reason
          t={t}
          vote={vote}
          close={() => setOpen("none")}
          save={async (changed) => {
            if (await actions.rate(answer, changed)) setOpen("none");
          }}
        />
      )}
      {open === "correct" && (
        <Correct
          t={t}
          text={vote?.correction || answer.text}
          close={() => setOpen("none")}
          save={async (correction) => {
            const said = vote ?? { value: 0, tags: [], comment: "", correction: "" };
            if (await actions.rate(answer, { ...said, correction })) setOpen("none");
          }}
        />
      )}
    </article>
  );
}

const escape =
  (close: () => void) =>
  (event: KeyboardEvent): void => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    close();
  };

/** Focus a field and show the whole of its form. */
function intoSight(field: HTMLElement | null): void {
  field?.focus();
  field?.closest("form")?.scrollIntoView({ block: "nearest" });
}

function Reason(props: { vote: Vote; save: (vote: Vote) => Promise<void>; close: () => void; t: Speak }) {
  const { vote, t } = props;
  const [tags, setTags] = useState(vote.tags);
  const [comment, setComment] = useState(vote.comment);
  const first = useRef<HTMLInputElement>(null);
  useEffect(() => intoSight(first.current), []);
  const toggle = (tag: string): void => setTags(tags.includes(tag) ? tags.filter((one) => one !== tag) : [...tags, tag]);
  return (
    <form
      class="panel"
      onKeyDown={escape(props.close)}
      onSubmit={(event) => {
        event.preventDefault();
        void props.save({ ...vote, tags, comment: comment.trim() });
      }}
    >
      <fieldset>
        <legend>{t("why")}</legend>
        <div class="tags">
          {TAGS[vote.value > 0 ? "up" : "down"].map((tag, index) => (
            <label class="tag" key={tag}>
              <input
                type="checkbox"
                ref={index ? null : first}
                checked={tags.includes(tag)}
                onChange={() => toggle(tag)}
              />
              <span>{t(`tag.${tag}` as Word)}</span>
            </label>
          ))}
        </div>
      </fieldset>
      <label class="field">
        {t("commentLabel")}
        <textarea rows={2} maxLength={32768} dir="auto" value={comment} onInput={(e) => setComment(e.currentTarget.value)} />
      </label>
      <Buttons t={t} save={t("save")} close={props.close} />
    </form>
  );
}

function Correct(props: { text: string; save: (text: string) => Promise<void>; close: () => void; t: Speak }) {
  const [text, setText] = useState(props.text);
  const area = useRef<HTMLTextAreaElement>(null);
  useEffect(() => intoSight(area.current), []);
  const { t } = props;
  return (
    <form
      class="panel"
      onKeyDown={escape(props.close)}
      onSubmit={(event) => {
        event.preventDefault();
        if (text.trim() && text !== props.text) void props.save(text);
      }}
    >
      <label class="field">
        {t("correctTitle")}
        <textarea
          rows={6}
          maxLength={32768}
          dir="auto"
          ref={area}
          value={text}
          onInput={(e) => setText(e.currentTarget.value)}
        />
      </label>
      <Buttons t={t} save={t("sendCorrection")} disabled={!text.trim() || text === props.text} close={props.close} />
    </form>
  );
}

function Buttons({ t, save, disabled, close }: { t: Speak; save: string; disabled?: boolean; close: () => void }) {
  return (
    <div class="buttons">
      <button type="submit" class="main" disabled={disabled ?? false}>
        {save}
      </button>
      <button type="button" onClick={close}>
        {t("cancel")}
      </button>
    </div>
  );
}
