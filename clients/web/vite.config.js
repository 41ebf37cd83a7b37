import { defineConfig } from "vite";

export default defineConfig({
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    outDir: "../../server/plaudit_server/pages",
    emptyOutDir: true,
    target: "es2022",
    // The pages' Content-Security-Policy allows no inline script: the polyfill would be one.
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0,
    rollupOptions: { input: ["index.html", "console.html"] },
  },
});
