// The key, asked for once.
import { useState } from "preact/hooks";
import { Api, ApiError, type KeyInfo } from "./api";
import { session } from "./kept";
import type { Speak, Word } from "./words";

/** Who may enter a page: keys with one of these roles, and admins. `refusal` tells the others. */
export interface Entrance {
  roles: string[];
  refusal: Word;
}

/** What a key may do here, or why it may nothing. */
export async function admitted(key: string, entrance: Entrance, t: Speak): Promise<KeyInfo | string> {
  try {
    const own = await new Api(key, session()).get<KeyInfo>("/v1/keys/self");
    const may = own.roles.some((role) => role === "admin" || entrance.roles.includes(role));
    return may ? own : t(entrance.refusal, own.roles.join(", "));
  } catch (error) {
    if (error instanceof ApiError) return error.status === 401 ? t("keyWrong") : error.message;
    return t("offline");
  }
}

interface Props {
  entrance: Entrance;
  enter: (key: string, own: KeyInfo, remember: boolean) => void;
  t: Speak;
}

export function Gate({ entrance, enter, t }: Props) {
  const [key, setKey] = useState("");
  const [remember, setRemember] = useState(false);
  const [problem, setProblem] = useState("");
  const submit = async (event: Event): Promise<void> => {
    event.preventDefault();
    const own = await admitted(key.trim(), entrance, t);
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
