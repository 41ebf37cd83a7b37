// Versions as they descend from each other: a row each, newest on top, lines from parent to child at the side.
import { plain } from "../shared/plain";
import type { Version } from "./data";
import { useDesk } from "./desk";
import { Badge, When } from "./parts";

const ROW = 56;
const LANE = 18;

interface Node {
  version: Version;
  /** 0 is the oldest. */
  row: number;
  lane: number;
  parent: Node | null;
}

/** 0 for base, 42 for v42. */
export const numberOf = (version: { name: string }): number => (version.name === "base" ? 0 : Number(version.name.slice(1)));

/** Give each version a row, and a lane that no line of another passes through. */
export function laidOut(versions: Version[]): Node[] {
  const sorted = [...versions].sort((a, b) => numberOf(a) - numberOf(b));
  const heir = new Map<string, Version>(); // who goes on in its parent's lane: the newest proven child, else the newest
  for (const one of sorted) {
    const before = one.parent ? heir.get(one.parent) : undefined;
    if (one.parent && (!before || one.state === "ready" || before.state !== "ready")) heir.set(one.parent, one);
  }
  const rows = new Map(sorted.map((one, row) => [one.name, row]));
  const endOf = (one: Version): number => {
    let last = one;
    for (let next = heir.get(last.name); next; next = heir.get(last.name)) last = next;
    return rows.get(last.name)!;
  };
  const busy: number[] = []; // by lane: the last row that is taken
  const nodes = new Map<string, Node>();
  for (const [row, version] of sorted.entries()) {
    const parent = (version.parent && nodes.get(version.parent)) || null;
    let lane = parent && heir.get(parent.version.name) === version ? parent.lane : -1;
    if (lane < 0) {
      const from = parent ? parent.row : row;
      lane = 0;
      while ((busy[lane] ?? -1) >= from) lane++;
    }
    busy[lane] = Math.max(busy[lane] ?? -1, endOf(version));
    nodes.set(version.name, { version, row, lane, parent });
  }
  return [...nodes.values()];
}

export function LineageGraph(props: { versions: Version[]; chosen: string | null; choose: (name: string) => void }) {
  const { t } = useDesk();
  const nodes = laidOut(props.versions).reverse();
  const rows = nodes.length;
  const width = (Math.max(0, ...nodes.map((node) => node.lane)) + 1) * LANE + 8;
  const x = (node: Node): number => node.lane * LANE + 12;
  const y = (node: Node): number => (rows - 1 - node.row) * ROW + ROW / 2;
  return (
    <div class="lineage">
      <svg width={width} height={rows * ROW} aria-hidden="true">
        {nodes.map(
          (node) =>
            node.parent && (
              <path
                key={`to-${node.version.name}`}
                class="edge"
                d={`M${x(node)} ${y(node)} V${y(node.parent) - ROW / 2} L${x(node.parent)} ${y(node.parent)}`}
              />
            ),
        )}
        {nodes.map((node) => (
          <circle key={node.version.name} class={`node ${node.version.state}`} cx={x(node)} cy={y(node)} r="6" />
        ))}
      </svg>
      <ol aria-label={t("lineage")} reversed>
        {nodes.map(({ version }) => (
          <li key={version.name}>
            <button
              type="button"
              aria-pressed={version.name === props.chosen}
              onClick={() => props.choose(version.name)}
            >
              <strong>{version.name}</strong> <Badge state={version.state} />{" "}
              {version.aliases?.map((alias) => (
                <span key={alias} class="badge alias">
                  {plain(alias)}
                </span>
              ))}
              {version.tainted && <span class="badge failed">{t("tainted")}</span>}
              <span class="hint">
                {version.parent ? t("parentOf", version.parent) : t("noParent")} · <When at={version.created_at} />
              </span>
            </button>
          </li>
        ))}
      </ol>
    </div>
  );
}
