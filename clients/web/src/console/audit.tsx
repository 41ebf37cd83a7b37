// Who with power did what.
import { plain } from "../shared/plain";
import { Exports } from "./answers";
import type { AuditEntry } from "./data";
import { useDesk, useList } from "./desk";
import { Ending, Table, When } from "./parts";

export function Audit() {
  const { t, overview } = useDesk();
  const list = useList<AuditEntry>("/v1/audit?limit=50", overview?.newest.audit);
  return (
    <>
      <p class="hint">{t("auditHelp")}</p>
      <Exports<AuditEntry>
        path="/v1/audit"
        name="plaudit-audit"
        columns={["id", "at", "actor", "action", "subject", "detail"]}
        row={(one) => [one.id, one.at, one.actor, one.action, one.subject, JSON.stringify(one.detail)]}
      />
      {list.items && list.items.length > 0 && (
        <Table label={t("audit")} columns={[t("at"), t("actor"), t("action"), t("subject"), t("detail")]}>
          {list.items.map((one) => (
            <tr key={one.id}>
              <td>
                <When at={one.at} />
              </td>
              <td>{plain(one.actor)}</td>
              <th scope="row">{plain(one.action)}</th>
              <td>{plain(one.subject)}</td>
              <td class="words">{detailOf(one)}</td>
            </tr>
          ))}
        </Table>
      )}
      <Ending list={list} />
    </>
  );
}

/** `name: value` for each thing that was noted; what is empty is left out. */
function detailOf(entry: AuditEntry): string {
  return Object.entries(entry.detail ?? {})
    .filter(([, value]) => value !== null && value !== "")
    .map(([name, value]) => `${plain(name)}: ${plain(typeof value === "string" ? value : JSON.stringify(value))}`)
    .join(" · ");
}
