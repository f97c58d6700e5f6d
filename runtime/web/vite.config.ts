import { defineConfig } from "vite";

const names = { entryFileNames: "[name].js", chunkFileNames: "shared.js", assetFileNames: "[name][extname]" };

export default defineConfig({
  base: "./",
  publicDir: "static",
  // onnxruntime's WebAssembly files lie beside the page instead of inside its script.
  resolve: { conditions: ["onnxruntime-web-use-extern-wasm", "module", "browser", "import", "default"] },
  build: {
    outDir: "../mars_runtime/web/page",
    emptyOutDir: true,
    target: "es2022",
    modulePreload: { polyfill: false },
    rollupOptions: {
      input: { page: "index.html", "mars-edge": "src/mars-edge.ts" },
      preserveEntrySignatures: "strict",
      output: names,
    },
  },
  worker: { format: "es", rollupOptions: { output: names } },
});
