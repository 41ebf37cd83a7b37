// Icons drawn here: a font that has them is not everywhere. All are decoration; the button carries the name.

const PATHS = {
  up: "M7 10v11H3V10h4zm0 0 4-8a2.5 2.5 0 0 1 2.4 3.1L12.7 9H19a2 2 0 0 1 2 2.3l-1.2 7.5A2.6 2.6 0 0 1 17.2 21H7",
  down: "M7 14V3H3v11h4zm0 0 4 8a2.5 2.5 0 0 0 2.4-3.100L12.7 15H19a2 2 0 0 0 2-2.300l-1.2-7.500A2.6 2.6 0 0 0 17.2 3H7",
  comment: "M4 4h16v12H10l-5 4v-4H4z",
  correct: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  copy: "M9 9h11v12H9zM15 9V4H4v12h5",
  regenerate: "M20 12a8 8 0 1 1-2.5-5.800M20 3v5h-5",
  remove: "M6 6l12 12M18 6 6 18",
  menu: "M4 7h16M4 12h16M4 17h16",
  before: "M15 5l-7 7 7 7",
  after: "M9 5l7 7-7 7",
} as const;

export type Sign = keyof typeof PATHS;

export function Drawing({ sign }: { sign: Sign }) {
  return (
    <svg viewBox="0 0 24 24" width="18" height="18" aria-hidden="true" focusable="false">
      <path
        d={PATHS[sign]}
        fill="none"
        stroke="currentColor"
        stroke-width="1.8"
        stroke-linecap="round"
        stroke-linejoin="round"
      />
    </svg>
  );
}

interface Props {
  name: string;
  sign: Sign;
  onClick: () => void;
  pressed?: boolean;
  disabled?: boolean;
  expanded?: boolean;
  class?: string;
}

/** A button that is only an icon: its name is read aloud and shown as a tip. */
export function Icon(props: Props) {
  const pressed = props.pressed === undefined ? {} : { "aria-pressed": props.pressed };
  const expanded = props.expanded === undefined ? {} : { "aria-expanded": props.expanded };
  return (
    <button
      type="button"
      class={`icon ${props.class ?? ""}`}
      title={props.name}
      aria-label={props.name}
      disabled={props.disabled ?? false}
      onClick={props.onClick}
      {...pressed}
      {...expanded}
    >
      <Drawing sign={props.sign} />
    </button>
  );
}
