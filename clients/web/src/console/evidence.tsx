// The two figures that decide a rollout, drawn: evidence against its bound, and the difference against its margin.
import { figure } from "./parts";

const WIDTH = 400;
const LEFT = 20;
const RIGHT = WIDTH - 20;

/** Evidence on a logarithmic scale from 1/10 to ten times the bound, which is where it decides. */
export function Meter({ value, bound, label }: { value: number; bound: number; label: string }) {
  const [low, high] = [-1, Math.log10(bound) + 1];
  const x = (of: number): number => {
    const share = (Math.log10(Math.max(of, 1e-9)) - low) / (high - low);
    return LEFT + Math.min(1, Math.max(0, share)) * (RIGHT - LEFT);
  };
  const ticks = [0.1, 1, 10, bound, bound * 10].filter((tick, index, all) => all.indexOf(tick) === index && tick !== 10);
  return (
    <svg class={`drawn ${value >= bound ? "over" : ""}`} viewBox={`0 0 ${WIDTH} 64`} aria-hidden="true">
      <rect class="track" x={LEFT} y="22" width={RIGHT - LEFT} height="12" rx="3" />
      <rect class="bar" x={LEFT} y="22" width={Math.max(2, x(value) - LEFT)} height="12" rx="3" />
      <line class="bound" x1={x(bound)} x2={x(bound)} y1="14" y2="40" />
      <text x={x(bound)} y="10" text-anchor="middle">
        {label}
      </text>
      {ticks.map((tick) => (
        <text key={tick} x={x(tick)} y="54" text-anchor="middle">
          {figure(tick)}
        </text>
      ))}
    </svg>
  );
}

/** The difference, what it surely exceeds, and the margin that it must exceed; 0 in the middle, in percentage points. */
export function Span({ value, low, margin }: { value: number; low: number; margin: number }) {
  const reach = Math.min(1, Math.max(0.05, Math.abs(value), Math.abs(low), margin) * 1.15);
  const x = (of: number): number => LEFT + ((Math.min(reach, Math.max(-reach, of)) + reach) / (2 * reach)) * (RIGHT - LEFT);
  const end = Number((reach * 100).toPrecision(2));
  return (
    <svg class="drawn" viewBox={`0 0 ${WIDTH} 64`} aria-hidden="true">
      <line class="axis" x1={LEFT} x2={RIGHT} y1="40" y2="40" />
      <line class="zero" x1={x(0)} x2={x(0)} y1="16" y2="44" />
      <line class="bound" x1={x(-margin)} x2={x(-margin)} y1="16" y2="44" />
      <line class="whisker" x1={x(low)} x2={RIGHT} y1="28" y2="28" />
      <line class="whisker" x1={x(low)} x2={x(low)} y1="22" y2="34" />
      <circle class="mean" cx={x(value)} cy="28" r="6" />
      <text x={x(-margin)} y="12" text-anchor="middle">{`−${figure(margin * 100)}`}</text>
      <text x={LEFT} y="58" text-anchor="start">{`−${end}`}</text>
      <text x={x(0)} y="58" text-anchor="middle">
        0
      </text>
      <text x={RIGHT} y="58" text-anchor="end">{`+${end}`}</text>
    </svg>
  );
}
