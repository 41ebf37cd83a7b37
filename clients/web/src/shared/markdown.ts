// An answer's markdown as DOM that can do nothing: no raw HTML, no images, no scripts, links that only a click follows.
// Three walls: the renderer escapes HTML, the sanitiser lets few elements pass, the page's CSP forbids the rest.
import DOMPurify from "dompurify";
import MarkdownIt from "markdown-it";
import { plain } from "./plain";

const markdown = new MarkdownIt({ html: false, linkify: false, breaks: true });

// A remote image tells its host that the answer was read; its address may carry what was said. It becomes a link.
markdown.renderer.rules.image = (tokens, index) => {
  const token = tokens[index]!;
  const source = markdown.utils.escapeHtml(String(token.attrGet("src") ?? ""));
  const words = markdown.utils.escapeHtml(token.content || "image");
  return `<a href="${source}">[${words}]</a>`;
};

const ALLOWED_TAGS =
  "a blockquote br code del em h1 h2 h3 h4 h5 h6 hr li ol p pre s strong table tbody td th thead tr ul".split(" ");

/** Markdown as an inert fragment. */
export function render(text: string): DocumentFragment {
  const fragment = DOMPurify.sanitize(markdown.render(plain(text)), {
    ALLOWED_TAGS,
    ALLOWED_ATTR: ["href", "start"],
    ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
    ALLOW_DATA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
    link.title = plain(link.getAttribute("href") ?? "");
  }
  for (const block of fragment.querySelectorAll("pre, table")) (block as HTMLElement).tabIndex = 0;
  return fragment;
}
