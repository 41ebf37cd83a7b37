/** The look. Colours follow the page; parts and custom properties change the rest. */
const CSS = `
:host{display:inline-block;font:inherit;color:inherit;--_accent:var(--plaudit-accent,currentColor)}
:host([hidden]),[hidden]{display:none!important}
[part=group]{display:inline-flex;align-items:center;gap:.25rem;flex-wrap:wrap}
button{font:inherit;color:inherit;background:none;border:1px solid transparent;border-radius:.5rem;cursor:pointer;min-width:2rem;min-height:2rem;padding:.25rem .5rem}
button:hover{background:color-mix(in srgb,currentColor 10%,transparent)}
button:focus-visible,textarea:focus-visible{outline:2px solid var(--_accent);outline-offset:2px}
svg{width:1.1em;height:1.1em;display:block;fill:none;stroke:currentColor;stroke-width:1.8;stroke-linejoin:round}
svg.down{transform:scaleY(-1)}
button[aria-pressed=true]{color:var(--_accent);border-color:currentColor}
[part~=reason][aria-pressed=true]{background:color-mix(in srgb,currentColor 15%,transparent);box-shadow:inset 0 0 0 1px currentColor}
button[aria-pressed=true] svg{fill:currentColor}
fieldset{border:1px solid color-mix(in srgb,currentColor 30%,transparent);border-radius:.5rem;margin:.25rem 0 0;padding:.5rem;max-width:28rem;min-width:0}
[part~=reason],[part=send],[part=close]{border-color:color-mix(in srgb,currentColor 40%,transparent);margin:0 .25rem .25rem 0}
textarea{font:inherit;color:inherit;background:transparent;border:1px solid color-mix(in srgb,currentColor 60%,transparent);border-radius:.5rem;box-sizing:border-box;display:block;width:100%;padding:.5rem;margin:.25rem 0 .5rem}
textarea::placeholder{color:inherit;opacity:.75}
[part=status]{font-size:.875em;padding-inline-start:.25rem}
@media(forced-colors:active){button[aria-pressed=true]{border:2px solid Highlight}}
`;

let sheet: CSSStyleSheet | undefined;

/** One sheet for all instances. A constructed one needs no `style-src 'unsafe-inline'`. */
export function styleSheet(): CSSStyleSheet {
  if (!sheet) {
    sheet = new CSSStyleSheet();
    sheet.replaceSync(CSS);
  }
  return sheet;
}
