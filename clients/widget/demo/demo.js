// The form, or the address (?base-url=…&response-id=…&token=…), fills the components' attributes.
const form = document.querySelector("form");
const section = document.querySelector("section");
const log = document.querySelector("#log");

function show(fields) {
  for (const thumbs of document.querySelectorAll("plaudit-thumbs")) {
    for (const [name, value] of fields) thumbs.setAttribute(name, value);
  }
  section.hidden = false;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  show(new FormData(form));
});

for (const name of ["plaudit-vote", "plaudit-error"]) {
  document.addEventListener(name, ({ detail }) => {
    log.textContent += `${name} ${JSON.stringify({ ...detail, nextToken: detail.nextToken && "…" })}\n`;
  });
}

const given = new URLSearchParams(location.search);
for (const [name, value] of given) if (form.elements[name]) form.elements[name].value = value;
if (given.has("token")) show(new FormData(form));
