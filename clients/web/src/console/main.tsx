import { start } from "../shared/shell";
import { Console } from "./console";
import "./console.css";
import { speakerOf } from "./words";

start({
  entrance: { roles: ["viewer", "operator"], refusal: "keyNoConsole" },
  title: (language) => speakerOf(language)("title"),
  inside: (given) => <Console {...given} />,
});
