// Is it learning? Who is rated how, what the gate measured, what the trainer does now, what was refused last.
import { useEffect, useState } from "preact/hooks";
import { plain } from "../shared/plain";
import { address, type GateCheck, type Overview, type Page, type RunNow, type Version, type VoteStatistics } from "./data";
import { useAsk, useDesk } from "./desk";
import { Badge, counted, Figures, lasting, percent, Problem, Said, since } from "./parts";
import { type Drawing, Plot, type Series } from "./plot";
import { named, type Speak, type Word } from "./words";

const DAY_S = 86_400;
/** Period and length of a stretch, in seconds. */
const PERIODS: Record<string, [number, number]> = {
  p1: [DAY_S, 3600],
  p7: [7 * DAY_S, DAY_S / 4],
  p30: [30 * DAY_S, DAY_S],
  p365: [365 * DAY_S, 7 * DAY_S],
};
const SHOWN_VERSIONS = 6;

/** The time now, to the second, for what is told as "5 s ago". */
function useNow(): number {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, []);
  return now;
}

export function Learning() {
  const { t, overview, language } = useDesk();
  const locale = language === "zh" ? "zh-Hans" : "en-GB";
  const [period, setPeriod] = useState("p30");
  const [length, bucket] = PERIODS[period]!;
  const mark = overview?.newest.feedback_at;
  // To the stretch, so that the address, and with it the question, stays the same from look to look.
  const from = new Date(Math.floor(Date.now() / 1000 / bucket + 1) * bucket * 1000 - length * 1000).toISOString();
  const votes = useAsk<VoteStatistics>(address("/v1/statistics/votes", { since: from, bucket_seconds: bucket }), mark);
  const versions = useAsk<Page<Version>>("/v1/versions?limit=100", JSON.stringify(overview?.counts.versions));
  return (
    <>
      {overview && <State overview={overview} />}
      <section aria-label={t("learning")}>
        <p class="headline">{votes.data && overview && <Headline votes={votes.data} overview={overview} />}</p>
        <p class="hint">{t("headHint")}</p>
        <Problem text={votes.problem || versions.problem} />
        <label class="check">
          {t("period")}{" "}
          <select value={period} onChange={(event) => setPeriod(event.currentTarget.value)}>
            {Object.keys(PERIODS).map((name) => (
              <option key={name} value={name}>
                {t(name as Word)}
              </option>
            ))}
          </select>
        </label>
      </section>
      <div class="plots">
        {votes.data && <Plot drawing={upRates(votes.data, length, locale, t)} />}
        {versions.data && gatePlots(versions.data.data, t).map((one) => <Plot key={one.name} drawing={one} />)}
      </div>
    </>
  );
}

const rate = (one: { low?: number | null; high?: number | null }): string => `${percent(one.low)} – ${percent(one.high)}`;

/** What the votes say, in a sentence. */
function Headline({ votes, overview }: { votes: VoteStatistics; overview: Overview }) {
  const { t } = useDesk();
  const stable = overview.aliases.find((alias) => alias.name === "stable")?.version ?? "base";
  const now = votes.versions.find((one) => one.version === stable) ?? votes.versions.at(-1);
  const before = votes.versions.filter((one) => one !== now).at(0); // the oldest: where it came from
  if (!now) return <>{t("headNone")}</>;
  if (!before)
    return <>{t("headOne", now.version, percent(now.up_rate), now.up + now.down, rate(now))}</>;
  const better = now.low! > before.high!;
  const worse = now.high! < before.low!;
  const word = better ? "headBetter" : worse ? "headWorse" : "headOpen";
  const rest = [now.version, before.version, percent(now.up_rate), rate(now), percent(before.up_rate), rate(before)];
  return <>{t(word, ...rest)}</>;
}

function State({ overview }: { overview: Overview }) {
  const { t } = useDesk();
  const now = useNow();
  const { server, waiting, aliases } = overview;
  const of = (name: string): string | undefined => aliases.find((alias) => alias.name === name)?.version;
  return (
    <>
      {server.fake_engine && <p class="notice">{t("fake")}</p>}
      {server.status !== "ok" && <p class="notice failed">{t(server.status === "starting" ? "starting" : "degraded")}</p>}
      <div class="tiles">
        <Tile name={t("tileStable")} value={of("stable") ?? "–"} more={of("canary") ? t("tileCanary", of("canary")!) : ""} />
        <Tile
          name={t("tileWaiting")}
          value={String(waiting.records)}
          more={Object.keys(waiting.passed_over).length ? t("tilePassed", counted(waiting.passed_over)) : ""}
        />
        <Tile
          name={t("tileHeard")}
          value={server.trainer_seen_at ? since(server.trainer_seen_at, now, t) : t("tileNever")}
        />
        <Tile
          name={t("tileEngine")}
          value={named(t, "state", server.engine)}
          more={t("tileReplicas", server.replicas_ready, server.replicas)}
        />
      </div>
      <div class="pair">
        <Progress run={overview.run ?? null} now={now} />
        <Refused refusal={overview.refusal ?? null} now={now} />
      </div>
    </>
  );
}

function Tile({ name, value, more }: { name: string; value: string; more?: string }) {
  return (
    <section class="tile" aria-label={name}>
      <h2>{name}</h2>
      <p class="big">{value}</p>
      <p class="hint">{more}</p>
    </section>
  );
}

function Progress({ run, now }: { run: RunNow | null; now: number }) {
  const { t } = useDesk();
  if (!run)
    return (
      <section class="card">
        <h2>{t("run")}</h2>
        <p class="hint">{t("runNone")}</p>
      </section>
    );
  const going = run.state === "running";
  const left = run.stage_ends_at ? (Date.parse(run.stage_ends_at) - now) / 1000 : null;
  const where = run.step ? (run.steps ? t("runStep", run.step, run.steps) : t("runStepOnly", run.step)) : "";
  return (
    <section class="card" aria-label={t("run")}>
      <h2>{t("run")}</h2>
      <p>
        {t("runOf", run.version, run.parent)} <Badge state={run.state} />
      </p>
      {going && (
        <>
          <p class="stage">
            {run.stage && t("stage")} {run.stage && plain(run.stage)} {where && `· ${where}`}
          </p>
          {run.step && run.steps ? (
            <progress max={run.steps} value={run.step} aria-label={t("progress")} />
          ) : (
            <progress aria-label={t("progress")} />
          )}
          <p class="hint">
            {left === null ? t("runEtaNone") : t("runEta", lasting(left, t))} · {t("runUpdated", since(run.updated_at, now, t))}
          </p>
        </>
      )}
      {!going && <p class="hint">{t("runUpdated", since(run.updated_at, now, t))}</p>}
      {run.reason && <Said text={run.reason} />}
      {Object.keys(run.metrics ?? {}).length > 0 && (
        <details open={going}>
          <summary>{t("lastMetrics")}</summary>
          <Figures label={t("lastMetrics")} of={run.metrics ?? {}} />
        </details>
      )}
    </section>
  );
}

const REFUSED: Record<string, Word> = { rejected: "refusedGate", failed: "refusedProof", run_failed: "refusedRun" };

function Refused({ refusal, now }: { refusal: Overview["refusal"] | null; now: number }) {
  const { t } = useDesk();
  return (
    <section class="card" aria-label={t("refusal")}>
      <h2>{t("refusal")}</h2>
      {!refusal && <p class="hint">{t("refusalNone")}</p>}
      {refusal && (
        <>
          <p>
            {t(REFUSED[refusal.kind] ?? "refusedRun", plain(refusal.subject))}{" "}
            <span class="hint">{since(refusal.at, now, t)}</span>
          </p>
          <Said text={refusal.reason} />
        </>
      )}
    </section>
  );
}

/** The newest versions that somebody rated. A point is a stretch of time; its whiskers are Wilson's interval. */
function upRates(votes: VoteStatistics, length: number, locale: string, t: Speak): Drawing {
  const bucket = votes.bucket_seconds;
  const series = votes.versions.slice(-SHOWN_VERSIONS).map((one): Series => {
    const points = one.points.flatMap((p) => {
      if (typeof p.up_rate !== "number") return [];
      const x = Date.parse(p.begins_at) / 1000 + bucket / 2;
      return [{ x, y: p.up_rate, low: p.low!, high: p.high!, n: p.up + p.down }];
    });
    return { label: one.version, points };
  });
  const shared = { title: t("plotUp"), xLabel: t("plotTime"), yLabel: t("plotUpY") };
  const span: [number, number] = [Date.parse(votes.since) / 1000, Date.parse(votes.since) / 1000 + length];
  return { name: "plaudit-thumbs-up-rate", ...shared, series, span, locale, time: true, rate: true };
}

const PLOTTED: [string, string, Word, Word, boolean][] = [
  ["win_rate", "plaudit-heldout-win-rate", "plotWin", "plotWinY", true],
  ["reward_auroc", "plaudit-reward-auroc", "plotAuroc", "plotAurocY", true],
  ["kl", "plaudit-kl", "plotKl", "plotKlY", false],
  ["length_growth", "plaudit-length-growth", "plotLength", "plotLengthY", false],
];

/** What the gate measured of each version, oldest first; refused ones too, since they tell most. */
function gatePlots(versions: Version[], t: Speak): Drawing[] {
  const measured = versions.filter((version) => version.gate?.checks.length).reverse();
  const names = measured.map((version) => version.name);
  return PLOTTED.map(([check, name, title, yLabel, isRate]) => {
    const points = measured.flatMap((version, x) => {
      const found: GateCheck | undefined = version.gate!.checks.find((one) => one.name === check);
      if (!found || found.value === null) return [];
      const span = typeof found.low === "number" && typeof found.high === "number" ? { low: found.low, high: found.high } : {};
      return [{ x, y: found.value, ...span, n: found.n ?? 0 }];
    });
    const series = [{ label: t(title), points }];
    return { name, title: t(title), xLabel: t("plotVersion"), yLabel: t(yLabel), series, names, rate: isRate };
  });
}
