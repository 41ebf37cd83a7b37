// The rollout: what the evidence says, and what a person may do about it.
import { useState } from "preact/hooks";
import { plain } from "../shared/plain";
import type { Page, Rollout, RolloutReport, Version } from "./data";
import { useAsk, useDesk, useList } from "./desk";
import { Meter, Span } from "./evidence";
import { Badge, Ending, figure, percent, Problem, Said, Table, When } from "./parts";
import { named, type Word } from "./words";

const isLive = (rollout: Rollout): boolean => rollout.state === "running" || rollout.state === "paused";

export function RolloutView({ candidate }: { candidate: string }) {
  const { t, overview, may } = useDesk();
  const newest = overview?.rollout ?? null;
  const list = useList<Rollout>("/v1/rollouts", JSON.stringify([newest?.id, newest?.state]));
  const live = newest && isLive(newest);
  const earlier = list.items?.filter((one) => !isLive(one)) ?? [];
  return (
    <>
      {!overview && <p class="hint">{t("loading")}</p>}
      {overview && !live && <p>{t("rolloutNone")}</p>}
      {overview && !live && may("operator") && <Start candidate={candidate} />}
      {newest && <Shown rollout={newest} />}
      <section>
        <h2>{t("history")}</h2>
        {earlier.length > 0 && (
          <Table label={t("history")} columns={[t("candidate"), t("stable"), t("state"), t("began"), t("ended"), t("actor"), t("why")]}>
            {earlier.map((one) => (
              <tr key={one.id}>
                <th scope="row">{one.candidate}</th>
                <td>{one.stable}</td>
                <td>
                  <Badge state={one.state} />
                </td>
                <td>
                  <When at={one.created_at} />
                </td>
                <td>
                  <When at={one.ended_at} />
                </td>
                <td>{plain(one.actor)}</td>
                <td>{plain(one.reason ?? "")}</td>
              </tr>
            ))}
          </Table>
        )}
        <Ending list={list} />
      </section>
    </>
  );
}

function Shown({ rollout }: { rollout: Rollout }) {
  const { t } = useDesk();
  return (
    <section class="card" aria-label={t("rolloutHead", rollout.candidate, rollout.stable)}>
      <h2>
        {t("rolloutHead", rollout.candidate, rollout.stable)} <Badge state={rollout.state} />
      </h2>
      <p class="hint">
        {t("share", percent(rollout.weight))} · {t("stepOf", rollout.step + 1, rollout.steps.length)} (
        {rollout.steps.map((step) => percent(step.weight)).join(" → ")}) · {t("began")} <When at={rollout.created_at} />
      </p>
      {rollout.reason && <Said text={rollout.reason} />}
      <Verbs rollout={rollout} />
      {rollout.report && <Report report={rollout.report} />}
    </section>
  );
}

const VERBS: Record<string, ("promote" | "pause" | "resume" | "abort")[]> = {
  running: ["promote", "pause", "abort"],
  paused: ["promote", "resume", "abort"],
};

function Verbs({ rollout }: { rollout: Rollout }) {
  const { t, api, ask, say, may } = useDesk();
  const verbs = VERBS[rollout.state] ?? [];
  if (!may("operator") || !verbs.length) return null;
  return (
    <div class="buttons">
      {verbs.map((verb) => (
        <button
          key={verb}
          type="button"
          onClick={() =>
            ask({
              title: `${t(`verb.${verb}`)}: ${rollout.candidate}`,
              help: t(`verbHelp.${verb}`),
              verb: t(`verb.${verb}`),
              act: async (reason) => {
                const now = await api.post<Rollout>(`/v1/rollouts/${encodeURIComponent(rollout.id)}/${verb}`, { reason });
                say(t("done", named(t, "state", now.state)));
              },
            })
          }
        >
          {t(`verb.${verb}`)}
        </button>
      ))}
    </div>
  );
}

function Report({ report }: { report: RolloutReport }) {
  const { t } = useDesk();
  const told = typeof report.difference === "number" && typeof report.difference_low === "number";
  return (
    <>
      <h3>{t("decision")}</h3>
      <Said text={report.words} class="headline" />
      <div class="pair">
        <section>
          <h3>{t("evidence")}</h3>
          <p>{t("evidenceSaid", figure(report.e_value), figure(report.e_bound))}</p>
          <Meter value={report.e_value} bound={report.e_bound} label={t("evidenceBound", figure(report.e_bound))} />
        </section>
        <section>
          <h3>{t("difference")}</h3>
          {!told && <p class="hint">{t("differenceNone")}</p>}
          {told && (
            <>
              <p>{t("differenceSaid", points(report.difference!), points(Math.max(-1, report.difference_low!)), points(-report.margin))}</p>
              <Span value={report.difference!} low={report.difference_low!} margin={report.margin} />
            </>
          )}
        </section>
      </div>
      <h3>{t("ratio")}</h3>
      <p class={report.sample_ratio_ok ? "" : "failed"}>
        {t(report.sample_ratio_ok ? "ratioOk" : "ratioBad", figure(report.sample_ratio_e_value))}
      </p>
      <Arms report={report} />
      <Guards report={report} />
    </>
  );
}

/** A difference of shares in percentage points, signed. */
function points(share: number): string {
  const amount = Number((100 * share).toFixed(1));
  return amount < 0 ? `−${-amount}` : `+${amount}`;
}

function Arms({ report }: { report: RolloutReport }) {
  const { t } = useDesk();
  const arms = [
    [t("stable"), report.stable],
    [t("candidate"), report.canary],
  ] as const;
  return (
    <Table label={t("arm")} columns={[t("arm"), t("version"), t("exposed"), t("raters"), t("up"), t("down"), t("rate")]}>
      {arms.map(([name, arm]) => (
        <tr key={name}>
          <th scope="row">{name}</th>
          <td>{arm.version}</td>
          <td class="number">{arm.exposed}</td>
          <td class="number">{arm.raters}</td>
          <td class="number">{arm.up}</td>
          <td class="number">{arm.down}</td>
          <td class="number">{percent(arm.up_rate)}</td>
        </tr>
      ))}
    </Table>
  );
}

function Guards({ report }: { report: RolloutReport }) {
  const { t } = useDesk();
  if (!report.guardrails.length) return null;
  return (
    <>
      <h3>{t("guardrails")}</h3>
      <Table
        label={t("guardrails")}
        columns={[t("guardrail"), t("verdict"), t("stable"), t("candidate"), t("low"), t("bound"), t("exposed")]}
      >
        {report.guardrails.map((one) => (
          <tr key={one.name}>
            <th scope="row">{named(t, "guard", one.name)}</th>
            <td>
              <span class={`badge ${one.state === "fired" ? "failed" : one.state === "ok" ? "ready" : ""}`}>
                {named(t, "guard", one.state)}
              </span>
            </td>
            <td class="number">{figure(one.stable)}</td>
            <td class="number">{figure(one.canary)}</td>
            <td class="number">{figure(one.low)}</td>
            <td class="number">{figure(one.bound)}</td>
            <td class="number">
              {one.users_stable} + {one.users_canary}
            </td>
          </tr>
        ))}
      </Table>
    </>
  );
}

interface Plan {
  candidate: string;
  shares: string;
  hours: number;
  raters: number;
  days: number;
  promote: boolean;
  rollback: boolean;
}

const bodyOf = (plan: Plan): Record<string, unknown> => ({
  candidate: plan.candidate,
  steps: weights(plan.shares).map((weight) => ({ weight, min_seconds: plan.hours * 3600 })),
  min_raters: plan.raters,
  max_duration: plan.days * 86_400,
  auto_promote: plan.promote,
  auto_rollback: plan.rollback,
});

const weights = (shares: string): number[] =>
  shares
    .split(/[\s,;]+/)
    .filter(Boolean)
    .map((percent) => Number(percent) / 100);

function Start({ candidate }: { candidate: string }) {
  const { t, api, ask, say, overview } = useDesk();
  const versions = useAsk<Page<Version>>("/v1/versions?limit=100&state=ready", JSON.stringify(overview?.counts.versions));
  const stable = overview?.aliases.find((alias) => alias.name === "stable")?.version;
  const ready = (versions.data?.data ?? []).filter((one) => one.name !== stable);
  const [given, setPlan] = useState<Plan>({ candidate, shares: "5, 25, 50", hours: 1, raters: 100, days: 14, promote: false, rollback: true });
  const plan = { ...given, candidate: ready.some((one) => one.name === given.candidate) ? given.candidate : (ready[0]?.name ?? "") };
  const set = (changed: Partial<Plan>): void => setPlan({ ...plan, ...changed });
  const submit = (event: Event): void => {
    event.preventDefault();
    ask({
      title: `${t("start")}: ${plan.candidate}`,
      help: t("startHelp", plan.candidate, percent(weights(plan.shares)[0])),
      verb: t("start"),
      act: async (reason) => {
        await api.post("/v1/rollouts", { ...bodyOf(plan), reason });
        say(t("done", `canary → ${plan.candidate}`));
      },
    });
  };
  const isShares = weights(plan.shares).length > 0 && weights(plan.shares).every((one) => one > 0 && one <= 0.95);
  if (versions.data && !ready.length) return <p class="hint">{t("noCandidate")}</p>;
  return (
    <form class="card" aria-label={t("start")} onSubmit={submit}>
      <h2>{t("start")}</h2>
      <Problem text={versions.problem} />
      <Fields plan={plan} ready={ready} set={set} isShares={isShares} />
      <div class="buttons">
        <button type="submit" class="main" disabled={!plan.candidate || !isShares}>
          {t("start")}
        </button>
      </div>
    </form>
  );
}

interface FieldsProps {
  plan: Plan;
  ready: Version[];
  set: (changed: Partial<Plan>) => void;
  isShares: boolean;
}

function Fields({ plan, ready, set, isShares }: FieldsProps) {
  const { t } = useDesk();
  return (
    <>
      <div class="filters">
        <label class="field">
          {t("fieldCandidate")}
          <select value={plan.candidate} onChange={(event) => set({ candidate: event.currentTarget.value })}>
            {ready.map((one) => (
              <option key={one.name} value={one.name}>
                {one.name}
              </option>
            ))}
          </select>
        </label>
        <label class="field">
          {t("shares")}
          <input
            type="text"
            placeholder={t("sharesHint")}
            aria-invalid={!isShares}
            value={plan.shares}
            onInput={(event) => set({ shares: event.currentTarget.value })}
          />
        </label>
        <Amount word="hoursStep" min={0} step="any" value={plan.hours} set={(hours) => set({ hours })} />
        <Amount word="minRaters" min={1} step="1" value={plan.raters} set={(raters) => set({ raters })} />
        <Amount word="maxDays" min={0.01} step="any" value={plan.days} set={(days) => set({ days })} />
      </div>
      <label class="check">
        <input type="checkbox" checked={plan.promote} onChange={() => set({ promote: !plan.promote })} />
        {t("autoPromote")}
      </label>
      <label class="check">
        <input type="checkbox" checked={plan.rollback} onChange={() => set({ rollback: !plan.rollback })} />
        {t("autoRollback")}
      </label>
    </>
  );
}

function Amount(props: { word: Word; min: number; step: string; value: number; set: (value: number) => void }) {
  const { t } = useDesk();
  return (
    <label class="field">
      {t(props.word)}
      <input
        type="number"
        min={props.min}
        step={props.step}
        required
        value={props.value}
        onInput={(event) => props.set(event.currentTarget.valueAsNumber)}
      />
    </label>
  );
}
