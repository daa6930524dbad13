/** A console of a VM in a window of its own. */
import { Title } from "@patternfly/react-core";
import { lazy, type ReactElement, Suspense, useEffect } from "react";
import type { Me } from "../api";
import { Refusal } from "../components/notices";
import { t } from "../i18n";
import { may } from "../session";
import { useVm } from "./vm_object";

const SerialConsole = lazy(() => import("../console/serial"));
const DisplayConsole = lazy(() => import("../console/display"));

export default function ConsoleWindow({ id, kind, me }: { id: string; kind: string; me: Me }): ReactElement {
  const { vm, error } = useVm(id);
  const name = vm?.name;
  useEffect(() => {
    if (name !== undefined) document.title = name;
  }, [name]);
  if (vm === undefined) return error === null ? <p role="status">{t("Asking the server …")}</p> : <Refusal title={t("This VM can't be shown")} error={error} />;
  if (!may(me, "write", vm.project)) return <p role="status">{t("Your role does not allow it.")}</p>;
  return (
    <main className="nc-console-window">
      <Title headingLevel="h1" size="md">
        {vm.name}
      </Title>
      <Suspense fallback={<p role="status">{t("Loading the console …")}</p>}>{kind === "display" ? <DisplayConsole vm={vm.id} name={vm.name} /> : <SerialConsole vm={vm.id} name={vm.name} />}</Suspense>
    </main>
  );
}
