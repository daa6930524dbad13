import "@patternfly/react-core/dist/styles/base.css";
import "./app.css";
import { QueryClientProvider } from "@tanstack/react-query";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { App } from "./app";
import { Boundary } from "./components/boundary";
import { reportErrors } from "./errors";
import { speak } from "./i18n";
import { queries } from "./live";
import { restore } from "./session";
import { applyTheme } from "./theme";

applyTheme();
reportErrors();
void restore();
await speak(navigator.languages);
const root = document.getElementById("root");
if (root !== null) {
  createRoot(root).render(
    <StrictMode>
      <QueryClientProvider client={queries}>
        <Boundary>
          <App />
        </Boundary>
      </QueryClientProvider>
    </StrictMode>,
  );
}
