// The message field, with what may be asked: one answer, or two to compare.
import { useEffect, useRef, useState } from "preact/hooks";
import type { Api } from "../shared/api";
import type { Speak } from "../shared/words";

interface Props {
  api: Api;
  busy: boolean;
  mayCompare: boolean;
  send: (text: string, two: boolean, against: string) => void;
  stop: () => void;
  status: string;
  t: Speak;
}

export function Composer({ api, busy, mayCompare, send, stop, status, t }: Props) {
  const [text, setText] = useState("");
  const [two, setTwo] = useState(false);
  const [against, setAgainst] = useState("");
  const field = useRef<HTMLTextAreaElement>(null);
  useEffect(() => field.current?.focus(), []);
  const submit = (): void => {
    if (busy || !text.trim()) return;
    send(text.trim(), two, against);
    setText("");
    field.current?.focus();
  };
  const onKey = (event: KeyboardEvent): void => {
    // While an input method composes (Chinese, Japanese), Enter chooses a word.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  };
  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        submit();
      }}
    >
      <p class="status" role="status">
        {status}
      </p>
      <div class="row">
        <textarea
          id="message"
          ref={field}
          rows={2}
          dir="auto"
          aria-label={t("ask")}
          aria-describedby="ask-hint"
          placeholder={t("ask")}
          value={text}
          onInput={(event) => setText(event.currentTarget.value)}
          onKeyDown={onKey}
        />
        {busy ? (
          <button type="button" class="main" onClick={stop}>
            {t("stop")}
          </button>
        ) : (
          <button type="submit" class="main">
            {t("send")}
          </button>
        )}
      </div>
      <div class="row small">
        <p class="hint" id="ask-hint">
          {t("askHint")}
        </p>
        {mayCompare && (
          <label class="check" title={t("twoHelp")}>
            <input type="checkbox" checked={two} onChange={() => setTwo(!two)} />
            {t("two")}
          </label>
        )}
        {two && <Against api={api} value={against} set={setAgainst} t={t} />}
      </div>
    </form>
  );
}

/** Who speaks second: the same model, or another version that is ready. */
function Against(props: { api: Api; value: string; set: (model: string) => void; t: Speak }) {
  const [models, setModels] = useState<string[]>([]);
  const { api, t } = props;
  useEffect(() => {
    void api
      .get<{ data: { id: string }[] }>("/v1/models")
      .then((list) => setModels(list.data.map((model) => model.id).filter((id) => id !== "policy")))
      .catch(() => undefined); // the same model can be asked twice all the same
  }, [api]);
  return (
    <label class="check">
      {t("against")}{" "}
      <select value={props.value} onChange={(event) => props.set(event.currentTarget.value)}>
        <option value="">{t("same")}</option>
        {models.map((id) => (
          <option key={id} value={id}>
            {id}
          </option>
        ))}
      </select>
    </label>
  );
}
