import "@patternfly/react-core/dist/styles/base.css";
import "./app.css";
import { QueryClientProvider } from "@tanstack/react-query";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { App } from "./app";
import { speak } from "./i18n";
import { queries } from "./live";
import { restore } from "./session";
import { applyTheme } from "./theme";

applyTheme();
void restore();
await speak(navigator.languages);
const root = document.getElementById("root");
if (root !== null) {
  createRoot(root).render(
    <StrictMode>
      <QueryClientProvider client={queries}>
        <App />
      </QueryClientProvider>
    </StrictMode>,
  );
}
