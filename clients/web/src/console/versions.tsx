// Versions: where they come from, why they may serve, and who serves now.
import { useState } from "preact/hooks";
import { plain } from "../shared/plain";
import type { Alias, Lineage, Version } from "./data";
import { useAsk, useDesk, useList } from "./desk";
import type { Question } from "./dialog";
import { LineageGraph, numberOf } from "./lineage";
import { Badge, Ending, Facts, figure, Figures, Problem, Said, Table, When } from "./parts";

export function Versions() {
  const { t, overview, may } = useDesk();
  const [chosen, setChosen] = useState<string | null>(null);
  const mark = JSON.stringify([overview?.counts.versions, overview?.aliases]);
  const list = useList<Version>("/v1/versions?limit=100", mark);
  const stable = overview?.aliases.find((alias) => alias.name === "stable")?.version ?? null;
  const shown = chosen ?? stable;
  const version = list.items?.find((one) => one.name === shown) ?? null;
  return (
    <>
      {may("operator") && overview && list.items && <Rollback aliases={overview.aliases} versions={list.items} />}
      <div class="split">
        <section aria-label={t("lineage")}>
          <h2>{t("lineage")}</h2>
          {list.items && <LineageGraph versions={list.items} chosen={shown} choose={setChosen} />}
          <Ending list={list} />
        </section>
        <section aria-label={t("card")}>
          {version ? <Detail version={version} key={version.name} /> : <p class="hint">{t("pick")}</p>}
        </section>
      </div>
    </>
  );
}

function Rollback({ aliases, versions }: { aliases: Alias[]; versions: Version[] }) {
  const { t, api, ask, say } = useDesk();
  const at = (name: string): string | undefined => aliases.find((alias) => alias.name === name)?.version;
  const stable = at("stable") ?? "base";
  const others = versions.filter((one) => one.state === "ready" && numberOf(one) < numberOf({ name: stable }));
  const previous = at("previous");
  const before = previous !== stable ? previous : undefined;
  if (!others.length && !before) return null;
  const put = (): void => {
    const chosen = { to: before ? "previous" : others[0]!.name };
    const question: Question = {
      title: t("rollback"),
      help: t("rollbackHelp", stable),
      verb: t("rollback"),
      extra: (
        <label class="field">
          {t("rollbackTo")}
          <select onChange={(event) => (chosen.to = event.currentTarget.value)}>
            {before && <option value="previous">{t("previous", before)}</option>}
            {others.map((one) => (
              <option key={one.name} value={one.name}>
                {one.name}
              </option>
            ))}
          </select>
        </label>
      ),
      act: async (reason) => {
        const moved = await api.post<Alias>("/v1/rollback", { to: chosen.to, reason });
        say(t("done", `stable → ${moved.version}`));
      },
    };
    ask(question);
  };
  return (
    <div class="buttons">
      <button type="button" onClick={put}>
        {t("rollback")}
      </button>
    </div>
  );
}

function Detail({ version }: { version: Version }) {
  const { t, api, ask, say, may } = useDesk();
  const serves = version.aliases?.includes("stable");
  const promote = (): void =>
    ask({
      title: t("promote", version.name),
      help: t("promoteHelp", version.name),
      verb: t("promote", version.name),
      act: async (reason) => {
        await api.post(`/v1/versions/${version.name}/promote`, { reason });
        say(t("done", `stable → ${version.name}`));
      },
    });
  return (
    <>
      <h2>
        {version.name} <Badge state={version.state} />
      </h2>
      {version.reason && <Said text={version.reason} class="failed" />}
      {may("operator") && version.state === "ready" && !serves && (
        <div class="buttons">
          <button type="button" class="main" onClick={promote}>
            {t("promote", version.name)}
          </button>
          <a class="button" href={`#rollouts/${version.name}`}>
            {t("startWith", version.name)}
          </a>
        </div>
      )}
      <Gate version={version} />
      <Proof version={version} />
      <Card version={version} />
    </>
  );
}

function Gate({ version }: { version: Version }) {
  const { t } = useDesk();
  const checks = version.gate?.checks ?? [];
  return (
    <>
      <h3>{t("gate")}</h3>
      {checks.length === 0 && <p class="hint">{t("gateNone")}</p>}
      {checks.length > 0 && (
        <Table label={t("gate")} columns={[t("check"), t("verdict"), t("value"), t("interval95"), t("n"), t("bound")]}>
          {checks.map((check) => (
            <tr key={check.name}>
              <th scope="row">{plain(check.name.replaceAll("_", " "))}</th>
              <td>
                <span class={`badge ${check.passed ? "ready" : "failed"}`}>{t(check.passed ? "passed" : "refused")}</span>
              </td>
              <td class="number">{figure(check.value)}</td>
              <td class="number">{interval(check.low, check.high)}</td>
              <td class="number">{check.n}</td>
              <td class="words">
                {plain(check.bound)}
                {check.detail && <p class="hint">{plain(check.detail)}</p>}
              </td>
            </tr>
          ))}
        </Table>
      )}
    </>
  );
}

const interval = (low?: number | null, high?: number | null): string =>
  typeof low === "number" && typeof high === "number" ? `${figure(low)} – ${figure(high)}` : "–";

function Proof({ version }: { version: Version }) {
  const { t, language } = useDesk();
  const proof = version.proof;
  const isExplained = proof?.replicas.some((one) => one.reason);
  return (
    <>
      <h3>{t("proof")}</h3>
      {!proof && <p class="hint">{t(version.parent ? "proofNone" : "proofBase")}</p>}
      {proof && (
        <>
          <p class="hint">
            {t("proofAt", new Date(proof.checked_at).toLocaleString(language === "zh" ? "zh-Hans" : "en-GB"), figure(Number(proof.seconds.toFixed(2))))}
          </p>
          {proof.reason && <Said text={proof.reason} />}
          <Table
            label={t("proof")}
            columns={[
              t("replica"),
              t("verdict"),
              t("slope"),
              t("interval95"),
              t("probed"),
              t("tensors"),
              ...(isExplained ? [t("detail")] : []),
            ]}
          >
            {proof.replicas.map((one) => (
              <tr key={one.replica}>
                <th scope="row">{plain(one.replica)}</th>
                <td>
                  <span class={`badge ${one.passed ? "ready" : "failed"}`}>{t(one.passed ? "passed" : "refused")}</span>
                </td>
                <td class="number">{figure(one.slope)}</td>
                <td class="number">{interval(one.low, one.high)}</td>
                <td class="number">{one.tokens}</td>
                <td class="number">
                  {one.tensors_matched} / {one.tensors_expected}
                </td>
                {isExplained && <td class="words">{plain(one.reason ?? "")}</td>}
              </tr>
            ))}
          </Table>
        </>
      )}
    </>
  );
}

/** What it was made of. */
function Card({ version }: { version: Version }) {
  const { t } = useDesk();
  const line = useAsk<Lineage>(`/v1/versions/${version.name}/lineage`, version.tainted);
  const of = line.data?.feedback ?? {};
  return (
    <>
      <h3>{t("card")}</h3>
      <Problem text={line.problem} />
      <Facts
        of={[
          [t("cardMade"), <When at={version.created_at} />],
          [t("cardServes"), version.aliases?.join(", ") || "–"],
          [t("cardParent"), version.parent ?? t("noParent")],
          [t("cardAncestors"), line.data?.parents.join(" ← ") || "–"],
          [t("cardRecords"), String(of["records"] ?? 0)],
          [t("cardVotes"), t("cardVotesSaid", of["up"] ?? 0, of["down"] ?? 0, of["comparisons"] ?? 0)],
          [t("cardErased"), String(line.data?.erased_sources ?? 0)],
          [t("cardPrint"), <code>{version.fingerprint}</code>],
          [t("cardPlace"), version.location ? <code>{plain(version.location)}</code> : "–"],
          [t("cardRun"), version.run_id ? <code>{version.run_id}</code> : "–"],
          [t("cardBatches"), version.batch_ids?.length ? <code>{version.batch_ids.join(" ")}</code> : "–"],
        ]}
      />
      {Object.keys(version.metrics ?? {}).length > 0 && (
        <details>
          <summary>{t("cardMetrics")}</summary>
          <Figures label={t("cardMetrics")} of={version.metrics ?? {}} />
        </details>
      )}
    </>
  );
}
