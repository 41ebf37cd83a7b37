// The key, asked for once.
import { useState } from "preact/hooks";
import { Api, ApiError, type KeyInfo } from "../shared/api";
import { session } from "../shared/kept";
import type { Speak } from "../shared/words";

/** What a key may do here, or why it may nothing. */
export async function admitted(key: string, t: Speak): Promise<KeyInfo | string> {
  try {
    const own = await new Api(key, session()).get<KeyInfo>("/v1/keys/self");
    const may = own.roles.includes("chat") || own.roles.includes("admin");
    return may ? own : t("keyNoChat", own.roles.join(", "));
  } catch (error) {
    if (error instanceof ApiError) return error.status === 401 ? t("keyWrong") : error.message;
    return t("offline");
  }
}

export function Gate({ enter, t }: { enter: (key: string, own: KeyInfo, remember: boolean) => void; t: Speak }) {
  const [key, setKey] = useState("");
  const [remember, setRemember] = useState(false);
  const [problem, setProblem] = useState("");
  const submit = async (event: Event): Promise<void> => {
    event.preventDefault();
    const own = await admitted(key.trim(), t);
    if (typeof own === "string") setProblem(own);
    else enter(key.trim(), own, remember);
  };
  return (
    <main class="gate">
      <h1>{t("keyTitle")}</h1>
      <p id="key-help">{t("keyHelp")}</p>
      <form onSubmit={(event) => void submit(event)}>
        <label class="field">
          {t("key")}
          <input
            type="password"
            autocomplete="off"
            spellcheck={false}
            required
            aria-describedby="key-help"
            aria-invalid={problem !== ""}
            value={key}
            onInput={(event) => setKey(event.currentTarget.value)}
          />
        </label>
        <label class="check">
          <input type="checkbox" checked={remember} onChange={() => setRemember(!remember)} />
          {t("remember")}
        </label>
        <p class="hint">{t("rememberHelp")}</p>
        <p role="alert" class="failed">
          {problem}
        </p>
        <button class="main" type="submit">
          {t("enter")}
        </button>
      </form>
    </main>
  );
}
