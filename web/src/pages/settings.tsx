/** Settings of the whole platform that can be changed while it runs, and its keys. */
import type { ReactElement } from "react";
import { Title } from "@patternfly/react-core";
import { useQuery } from "@tanstack/react-query";
import { answered, client, type Me, type Schemas } from "../api";
import { When } from "../components/labels";
import { Refusal } from "../components/notices";
import { checked, type Operation, OperationBar, OperationButton } from "../components/operation";
import { PlainList } from "../components/plain";
import { m, t } from "../i18n";
import { LEVELS } from "../levels";
import { refusalFor } from "../session";

export function Settings({ me }: { me: Me }): ReactElement {
  return (
    <div className="nc-page">
      <Title headingLevel="h1">{t("Settings")}</Title>
      <NetworkEncryption me={me} />
      <LogLevel me={me} />
      <Keys me={me} />
      <PlatformKey me={me} />
    </div>
  );
}

function Setting({ title, text, error, operation }: { title: string; text: string | undefined; error: unknown; operation: Operation }): ReactElement {
  return (
    <section className="nc-section" aria-label={t(title)}>
      <div className="nc-bar">
        <Title headingLevel="h2">{t(title)}</Title>
        {text !== undefined && <span>{text}</span>}
        {text !== undefined && <OperationButton operation={{ ...operation, subject: t(title) }} />}
      </div>
      {error !== null && <Refusal title={t("{what} can't be shown", { what: t(title) })} error={error} />}
    </section>
  );
}

function NetworkEncryption({ me }: { me: Me }): ReactElement {
  const { data, error } = useQuery({ queryKey: ["plain", "network-encryption"], queryFn: () => answered(client.GET("/api/v1/network-encryption")) });
  const change: Operation = {
    label: m("Change"),
    refusal: refusalFor(me, "operate"),
    fields: [{ name: "always", label: m("Encrypt all traffic of all networks between nodes"), kind: "check", value: String(data?.always ?? false) }],
    command: (v) => `novacron network encryption ${checked(v["always"]) ? "always" : "by-network"}`,
    run: (v) => answered(client.PUT("/api/v1/network-encryption", { body: { always: checked(v["always"]) } })),
  };
  return <Setting title={m("Encryption between nodes")} text={data === undefined ? undefined : data.always ? t("always") : t("as each network says")} error={error} operation={change} />;
}

function LogLevel({ me }: { me: Me }): ReactElement {
  const { data, error } = useQuery({ queryKey: ["plain", "log-level"], queryFn: () => answered(client.GET("/api/v1/log-level")) });
  const change: Operation = {
    label: m("Change"),
    refusal: refusalFor(me, "operate"),
    fields: [{ name: "level", label: m("Level"), options: LEVELS, value: data?.level ?? "info", help: m("Until the server restarts.") }],
    command: (v) => `novacron log-level ${v["level"]}`,
    run: (v) => answered(client.PUT("/api/v1/log-level", { body: { level: v["level"] as Schemas["Level"] } })),
  };
  return <Setting title={m("Log level of the server")} text={data?.level} error={error} operation={change} />;
}

function Keys({ me }: { me: Me }): ReactElement {
  const refusal = refusalFor(me, "manage");
  return (
    <PlainList<Schemas["ServerKey"]>
      title={m("Keys of the platform")}
      name={["keys"]}
      fetchPage={() => answered(client.GET("/api/v1/keys"))}
      keyOf={(key) => key.name}
      empty={m("There is none.")}
      columns={[
        { title: m("Name"), width: "minmax(7rem, 1fr)", cell: (key) => key.name },
        { title: m("Phase"), width: "8rem", cell: (key) => key.phase },
        { title: m("Generation"), width: "7rem", cell: (key) => key.generation },
        { title: m("Made"), width: "13rem", cell: (key) => <When at={key.created_at} />, text: (key) => key.created_at },
        { title: m("Waits for"), width: "minmax(8rem, 2fr)", cell: (key) => key.waits_for.join(", ") || "-" },
        {
          title: "",
          width: "12rem",
          cell: ({ name, phase }) => {
            const at = { params: { path: { name } } };
            return (
              <OperationBar
                operations={[
                  { label: m("Rotate"), subject: name, refusal: refusal ?? (phase === "steady" ? null : m("It is being rotated.")), warning: m("A new key is made. The one before is accepted until the rotation is finished."), command: () => `novacron key rotate ${name}`, run: () => answered(client.POST("/api/v1/keys/{name}/actions/rotate", at)) },
                  {
                    label: m("Finish"),
                    subject: name,
                    refusal: refusal ?? (phase === "steady" ? m("It is not being rotated.") : null),
                    warning: m("What was made with the key before is refused from now on."),
                    fields: [{ name: "force", label: m("Also if something still uses it"), kind: "check" }],
                    command: (v) => `novacron key finish ${name}${checked(v["force"]) ? " --force" : ""}`,
                    run: (v) => answered(client.POST("/api/v1/keys/{name}/actions/finish", { ...at, body: { force: checked(v["force"]) } })),
                  },
                ]}
              />
            );
          },
        },
      ]}
    />
  );
}

function PlatformKey({ me }: { me: Me }): ReactElement {
  const { data, error } = useQuery({ queryKey: ["plain", "platform-key"], queryFn: () => answered(client.GET("/api/v1/platform-key")) });
  const rewrap: Operation = {
    label: m("Rewrap projects' keys"),
    refusal: refusalFor(me, "manage"),
    warning: m("All projects' keys are wrapped with the present platform key."),
    command: () => "novacron platform-key rewrap",
    run: () => answered(client.POST("/api/v1/platform-key/rewrap")),
  };
  const text = data === undefined ? undefined : t("{id}; projects' keys that each wraps: {keys}", { id: data.id, keys: Object.entries(data.keys).map(([id, count]) => `${id} ${count}`).join(", ") || "-" });
  return <Setting title={m("Platform key")} text={text} error={error} operation={rewrap} />;
}
