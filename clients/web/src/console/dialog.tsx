// The question before a deed: what it does, why it is done, yes or no. The browser's own dialog keeps the focus in.
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { plain } from "../shared/plain";
import type { Speak } from "./words";

export interface Question {
  title: string;
  help: string;
  /** On the button that does it. */
  verb: string;
  /** Whether a reason is asked for. Where the API keeps none, none is. */
  reasoned?: boolean;
  extra?: ComponentChildren;
  /** Does it. What it throws is shown, and the question stays. */
  act: (reason: string) => Promise<void>;
}

interface Props {
  question: Question;
  close: () => void;
  words: (error: unknown) => string;
  t: Speak;
}

export function Confirm({ question, close, words, t }: Props) {
  const [reason, setReason] = useState("");
  const [problem, setProblem] = useState("");
  const [busy, setBusy] = useState(false);
  const box = useRef<HTMLDialogElement>(null);
  useEffect(() => box.current?.showModal(), []);
  const reasoned = question.reasoned ?? true;
  const submit = async (event: Event): Promise<void> => {
    event.preventDefault();
    setBusy(true);
    try {
      await question.act(reason.trim());
      box.current?.close(); // gives the focus back to where it was
    } catch (error) {
      setProblem(words(error));
      setBusy(false);
    }
  };
  return (
    <dialog ref={box} class="confirm" aria-labelledby="question" onClose={close}>
      <form onSubmit={(event) => void submit(event)}>
        <h2 id="question">{plain(question.title)}</h2>
        <p>{plain(question.help)}</p>
        {question.extra}
        {reasoned && (
          <label class="field">
            {t("reason")}
            <textarea
              rows={3}
              required
              maxLength={4000}
              dir="auto"
              value={reason}
              onInput={(event) => setReason(event.currentTarget.value)}
            />
          </label>
        )}
        <p role="alert" class="failed">
          {plain(problem)}
        </p>
        <div class="buttons">
          <button type="submit" class="main" disabled={busy || (reasoned && !reason.trim())}>
            {plain(question.verb)}
          </button>
          <button type="button" onClick={() => box.current?.close()}>
            {t("cancel")}
          </button>
        </div>
      </form>
    </dialog>
  );
}
