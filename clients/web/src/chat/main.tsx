import { start } from "../shared/shell";
import { speaker } from "../shared/words";
import { Chat } from "./chat";
import "./chat.css";

start({
  entrance: { roles: ["chat"], refusal: "keyNoChat" },
  title: (language) => speaker(language)("title"),
  inside: ({ secret, own, leave, display, t }) => (
    <Chat secret={secret} own={own} leave={leave} display={display} t={t} />
  ),
});
