// Keys: made with roles, shown once, revoked.
import { useEffect, useRef, useState } from "preact/hooks";
import { plain } from "../shared/plain";
import type { Key, NewKey } from "./data";
import { useDesk, useList, wordsOf } from "./desk";
import { Ending, Problem, Table, When } from "./parts";
import type { Word } from "./words";

const ROLES = ["chat", "feedback", "viewer", "operator", "trainer", "admin"] as const;

export function Keys() {
  const { t, api, ask, say, overview } = useDesk();
  const [made, setMade] = useState<NewKey | null>(null);
  const list = useList<Key>("/v1/keys", overview?.newest.audit);
  const revoke = (key: Key): void =>
    ask({
      title: t("revokeOf", key.name),
      help: `${t("revokeHelp", key.name)} ${t("noReasonKept")}`,
      verb: t("revoke"),
      reasoned: false,
      act: async () => {
        await api.send("DELETE", `/v1/keys/${encodeURIComponent(key.id)}`);
        list.again();
        say(t("done", t("revokeOf", plain(key.name))));
      },
    });
  return (
    <>
      <Make made={(key) => (setMade(key), list.again())} />
      {made && <Secret key={made.id} of={made} close={() => setMade(null)} />}
      {list.items && list.items.length > 0 && (
        <Table label={t("keys")} columns={[t("keyName"), t("keyRoles"), t("keyStarts"), t("keyMade"), t("keyRevoked")]}>
          {list.items.map((key) => (
            <tr key={key.id}>
              <th scope="row">{plain(key.name)}</th>
              <td>{key.roles.join(", ")}</td>
              <td>
                <code>{key.hint}</code>
              </td>
              <td>
                <When at={key.created_at} />
              </td>
              <td>
                {key.revoked_at ? (
                  <When at={key.revoked_at} />
                ) : (
                  <button type="button" aria-label={t("revokeOf", plain(key.name))} onClick={() => revoke(key)}>
                    {t("revoke")}
                  </button>
                )}
              </td>
            </tr>
          ))}
        </Table>
      )}
      <Ending list={list} />
    </>
  );
}

function Make({ made }: { made: (key: NewKey) => void }) {
  const { t, api } = useDesk();
  const [name, setName] = useState("");
  const [roles, setRoles] = useState<string[]>([]);
  const [problem, setProblem] = useState("");
  const submit = async (event: Event): Promise<void> => {
    event.preventDefault();
    try {
      made(await api.post<NewKey>("/v1/keys", { name: name.trim(), roles }));
      setName("");
      setRoles([]);
      setProblem("");
    } catch (error) {
      setProblem(wordsOf(error, t));
    }
  };
  const toggle = (role: string): void => setRoles(roles.includes(role) ? roles.filter((one) => one !== role) : [...roles, role]);
  return (
    <form class="card" aria-label={t("keyNew")} onSubmit={(event) => void submit(event)}>
      <h2>{t("keyNew")}</h2>
      <label class="field">
        {t("keyName")}
        <input type="text" required maxLength={128} value={name} onInput={(event) => setName(event.currentTarget.value)} />
      </label>
      <fieldset class="roles">
        <legend>{t("keyRoles")}</legend>
        {ROLES.map((role) => (
          <label class="check" key={role}>
            <input type="checkbox" checked={roles.includes(role)} onChange={() => toggle(role)} />
            {t(`role.${role}` as Word)}
          </label>
        ))}
      </fieldset>
      <Problem text={problem} />
      <div class="buttons">
        <button type="submit" class="main" disabled={!name.trim() || roles.length === 0}>
          {t("keyMake")}
        </button>
      </div>
    </form>
  );
}

/** Lives in this view's memory only, until it is closed. */
function Secret({ of, close }: { of: NewKey; close: () => void }) {
  const { t, say } = useDesk();
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => (field.current?.focus(), field.current?.select()), []);
  return (
    <section class="card secret" aria-label={t("keySecret", plain(of.name))}>
      <label class="field">
        {t("keySecret", plain(of.name))}
        <input type="text" readOnly spellcheck={false} ref={field} value={of.secret} />
      </label>
      <p class="hint">{t("keySecretHelp")}</p>
      <div class="buttons">
        <button
          type="button"
          onClick={() => void navigator.clipboard.writeText(of.secret).then(() => say(t("copied")))}
        >
          {t("copy")}
        </button>
        <button type="button" onClick={close}>
          {t("close")}
        </button>
      </div>
    </section>
  );
}
