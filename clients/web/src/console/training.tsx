// Batches and what they passed over; runs and what they measured.
import { useState } from "preact/hooks";
import { plain } from "../shared/plain";
import type { Batch, Page, Run, RunPoint } from "./data";
import { useAsk, useDesk, useList } from "./desk";
import { Badge, counted, Ending, Figures, percent, Problem, Said, Table, When } from "./parts";
import { type Drawing, Plot, type Series } from "./plot";
import type { Speak } from "./words";

export function Training() {
  const { t, overview } = useDesk();
  const waiting = overview?.waiting;
  return (
    <>
      {waiting && (
        <p>
          {t("waitingNow", waiting.records)}{" "}
          {Object.keys(waiting.passed_over).length ? t("passedNow", counted(waiting.passed_over)) : t("passedNone")}
        </p>
      )}
      <Runs />
      <Batches />
    </>
  );
}

function Runs() {
  const { t, overview } = useDesk();
  const [chosen, setChosen] = useState<string | null>(null);
  const run = overview?.run;
  const list = useList<Run>("/v1/training/runs", JSON.stringify([overview?.counts.runs, run?.stage, run?.progress]));
  const shown = list.items?.find((one) => one.id === (chosen ?? list.items?.[0]?.id));
  const columns = [t("version"), t("state"), t("parentOf", ""), t("stage"), t("progress"), t("began"), t("why"), t("metric")];
  return (
    <section>
      <h2>{t("runs")}</h2>
      {list.items && list.items.length > 0 && (
        <Table label={t("runs")} columns={columns}>
          {list.items.map((one) => (
            <tr key={one.id} class={one === shown ? "chosen" : ""}>
              <th scope="row">{one.version}</th>
              <td>
                <Badge state={one.state} />
              </td>
              <td>{one.parent}</td>
              <td>{plain(one.stage ?? "–")}</td>
              <td class="number">{one.state === "running" ? percent(one.progress) : "–"}</td>
              <td>
                <When at={one.created_at} />
              </td>
              <td class="words">{plain(one.reason ?? "")}</td>
              <td>
                <button
                  type="button"
                  aria-pressed={one === shown}
                  aria-label={t("showRun", one.version)}
                  onClick={() => setChosen(one.id)}
                >
                  {t("apply")}
                </button>
              </td>
            </tr>
          ))}
        </Table>
      )}
      <Ending list={list} />
      {shown && <RunMetrics run={shown} key={shown.id} />}
    </section>
  );
}

/** What operators look at first, where a run reports it. */
const FIRST = /(^|\/)(kl|reward|loss|heldout_auroc)$/;

function RunMetrics({ run }: { run: Run }) {
  const { t } = useDesk();
  const [chosen, setChosen] = useState<string | null>(null);
  const points = useAsk<Page<RunPoint>>(`/v1/training/runs/${encodeURIComponent(run.id)}/metrics`, run.updated_at);
  const names = [...new Set((points.data?.data ?? []).flatMap((point) => Object.keys(point.metrics)))].sort();
  const name = chosen ?? names.find((one) => FIRST.test(one)) ?? names[0];
  return (
    <div class="card">
      <h3>{t("runMetrics", run.version)}</h3>
      <Problem text={points.problem} />
      {run.reason && <Said text={run.reason} />}
      {points.data && names.length === 0 && <p class="hint">{t("runWordless")}</p>}
      {name && (
        <>
          <label class="check">
            {t("metric")}{" "}
            <select value={name} onChange={(event) => setChosen(event.currentTarget.value)}>
              {names.map((one) => (
                <option key={one} value={one}>
                  {plain(one)}
                </option>
              ))}
            </select>
          </label>
          <Plot drawing={drawn(run, name, points.data?.data ?? [], t)} />
          <details>
            <summary>{t("lastMetrics")}</summary>
            <Figures label={t("lastMetrics")} of={run.metrics ?? {}} />
          </details>
        </>
      )}
    </div>
  );
}

/** One metric over the reports, a series a stage: steps are counted anew in each. */
function drawn(run: Run, name: string, points: RunPoint[], t: Speak): Drawing {
  const stages = new Map<string, Series>();
  for (const [index, point] of points.entries()) {
    const y = point.metrics[name];
    if (y === undefined) continue;
    const label = plain(point.stage ?? "–");
    const series = stages.get(label) ?? { label, points: [] };
    series.points.push({ x: index + 1, y });
    stages.set(label, series);
  }
  const file = `plaudit-${run.version}-${name.replaceAll(/[^\w]+/g, "-")}`;
  const shared = { title: `${run.version}: ${plain(name)}`, xLabel: t("plotStep"), yLabel: plain(name) };
  return { name: file, ...shared, series: [...stages.values()], plain: true };
}

function Batches() {
  const { t, overview } = useDesk();
  const list = useList<Batch>("/v1/batches", JSON.stringify(overview?.counts.batches));
  const columns = [t("batch"), t("state"), t("version"), t("records"), t("votes"), t("comparisons"), t("dropped"), t("at"), t("why")];
  return (
    <section>
      <h2>{t("batches")}</h2>
      {list.items && list.items.length > 0 && (
        <Table label={t("batches")} columns={columns}>
          {list.items.map((one) => (
            <tr key={one.id}>
              <th scope="row">
                <code title={one.id}>…{one.id.slice(-8)}</code>
              </th>
              <td>
                <Badge state={one.state} />
              </td>
              <td>{one.version ?? "–"}</td>
              <td class="number">{one.records}</td>
              <td class="number">
                +{one.up} −{one.down}
              </td>
              <td class="number">{one.comparisons}</td>
              <td>{counted(one.dropped) || "–"}</td>
              <td>
                <When at={one.created_at} />
              </td>
              <td class="words">{plain(one.reason ?? "")}</td>
            </tr>
          ))}
        </Table>
      )}
      <Ending list={list} />
    </section>
  );
}
