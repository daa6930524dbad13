/** The reader's own account: second factors, recovery codes, tokens and sessions. */
import { useQuery } from "@tanstack/react-query";
import { type ReactElement, useState } from "react";
import { Button, Form, FormGroup, TextInput, Title } from "@patternfly/react-core";
import { answered, client, type Me, type Schemas } from "../api";
import { When } from "../components/labels";
import { Refusal, said } from "../components/notices";
import { given, type Operation, OperationBar, OperationButton } from "../components/operation";
import { PlainList } from "../components/plain";
import { m, t } from "../i18n";
import { queries } from "../live";
import { Tokens } from "./access";

type Factor = Schemas["SecondFactor"];
const PASSWORD = { name: "password", label: m("Your password"), kind: "password" } as const;

export function Account({ me }: { me: Me }): ReactElement {
  const preset: Operation = {
    label: m("Set default project"),
    fields: [{ name: "default_project", label: m("Project"), optional: true, value: me.project, help: m("Your new objects are in it. Empty: the platform's default.") }],
    command: (v) => `novacron user default-project ${v["default_project"]}`,
    run: (v) => answered(client.PATCH("/api/v1/me", { body: { default_project: given(v["default_project"]) ?? null } })),
  };
  return (
    <div className="nc-page">
      <div className="nc-bar">
        <Title headingLevel="h1">{t("Account of {user}", { user: me.user })}</Title>
        <span>{t("Rights everywhere: {rights}", { rights: me.everywhere.join(", ") || t("none") })}</span>
        <OperationButton operation={preset} />
      </div>
      <SecondFactors />
      <Tokens user={me.user} />
    </div>
  );
}

function Codes({ codes }: { codes: readonly string[] }): ReactElement {
  return (
    <>
      <p>{t("Recovery codes, each good for one login. Keep them now: they are not shown again.")}</p>
      <ul aria-label={t("Recovery codes")}>
        {codes.map((code) => (
          <li key={code}>
            <code>{code}</code>
          </li>
        ))}
      </ul>
    </>
  );
}

function begin(kind: Factor["kind"], label: string): Operation {
  return {
    label,
    fields: [{ name: "name", label: m("Name"), help: m("To tell it from others.") }, PASSWORD],
    run: (v) => answered(client.POST("/api/v1/me/second-factors", { body: { kind, name: v["name"] ?? "", password: v["password"] ?? "" } })),
    show: (begun: Schemas["BegunFactor"]) => <Confirm begun={begun} />,
  };
}

/** The second step of adding one: a code of the app, or the key's answer. */
function Confirm({ begun }: { begun: Schemas["BegunFactor"] }): ReactElement {
  const [code, setCode] = useState("");
  const [error, setError] = useState<unknown>(null);
  const [confirmed, setConfirmed] = useState<Schemas["Confirmed"] | null>(null);
  const confirm = async (): Promise<void> => {
    setError(null);
    try {
      const proof = begun.kind === "totp" ? { code } : { credential: await register(begun) };
      const done = await answered(client.POST("/api/v1/me/second-factors/{ref}/actions/confirm", { params: { path: { ref: begun.id } }, body: proof }));
      setConfirmed(done);
      said(t("The second factor has been added"));
      void queries.invalidateQueries({ queryKey: ["plain"] });
    } catch (refusal) {
      setError(refusal);
    }
  };
  if (confirmed !== null) return confirmed.recovery_codes === null ? <p>{t("Added.")}</p> : <Codes codes={confirmed.recovery_codes} />;
  return (
    <Form
      onSubmit={(event) => {
        event.preventDefault();
        void confirm();
      }}
    >
      {error !== null && <Refusal title={t("Refused")} error={error} />}
      {begun.secret !== null && (
        <>
          <p>{t("Enter this secret into your app, then the code that it shows.")}</p>
          <code className="nc-command" aria-label={t("Secret for the app")}>
            {begun.secret}
          </code>
          <FormGroup label={t("Code of your app")} fieldId="factor-code">
            <TextInput id="factor-code" autoComplete="one-time-code" value={code} onChange={(_, value) => setCode(value)} />
          </FormGroup>
        </>
      )}
      <Button type="submit" isDisabled={begun.kind === "totp" && code === ""}>
        {begun.kind === "totp" ? t("Confirm") : t("Touch the key")}
      </Button>
    </Form>
  );
}

async function register(begun: Schemas["BegunFactor"]): Promise<Record<string, never>> {
  const publicKey = PublicKeyCredential.parseCreationOptionsFromJSON(begun.options as unknown as PublicKeyCredentialCreationOptionsJSON);
  const credential = (await navigator.credentials.create({ publicKey })) as PublicKeyCredential | null;
  if (credential === null) throw new Error(t("the browser gave no answer of a security key"));
  return credential.toJSON() as Record<string, never>;
}

function ofFactor(factor: Factor): Operation[] {
  return [
    {
      label: m("Remove"),
      subject: factor.name,
      fields: [PASSWORD],
      command: () => `novacron second-factor remove ${factor.name}`,
      run: (v) => answered(client.POST("/api/v1/me/second-factors/{ref}/actions/remove", { params: { path: { ref: factor.id } }, body: { password: v["password"] ?? "" } })),
    },
  ];
}

function SecondFactors(): ReactElement {
  const { data } = useQuery({ queryKey: ["plain", "own-factors", "left"], queryFn: () => answered(client.GET("/api/v1/me/second-factors")) });
  const codes: Operation = {
    label: m("Make other recovery codes"),
    fields: [PASSWORD],
    command: () => "novacron second-factor recovery-codes",
    run: (v) => answered(client.POST("/api/v1/me/recovery-codes", { body: { password: v["password"] ?? "" } })),
    show: (made: Schemas["RecoveryCodes"]) => <Codes codes={made.recovery_codes} />,
  };
  return (
    <PlainList<Factor>
      title={m("Second factors")}
      name={["own-factors"]}
      fetchPage={() => answered(client.GET("/api/v1/me/second-factors"))}
      keyOf={(factor) => factor.id}
      empty={m("A password is enough to log in.")}
      create={begin("totp", m("Add an app"))}
      columns={[
        { title: m("Name"), width: "minmax(8rem, 1fr)", cell: (factor) => factor.name },
        { title: m("Kind"), width: "8rem", cell: (factor) => factor.kind },
        { title: m("Added"), width: "13rem", cell: (factor) => <When at={factor.created_at} />, text: (factor) => factor.created_at },
        { title: m("Last used"), width: "13rem", cell: (factor) => (factor.used_at === null ? "-" : <When at={factor.used_at} />), text: (factor) => factor.used_at ?? "" },
        { title: "", width: "8rem", cell: (factor) => <OperationBar operations={ofFactor(factor)} /> },
      ]}
    >
      <div className="nc-bar">
        <OperationButton operation={begin("webauthn", m("Add a security key"))} />
        <OperationButton operation={codes} />
        {data !== undefined && data.items.length > 0 && <span>{t("{count} recovery codes are left", { count: data.recovery_codes })}</span>}
        {data?.required === true && data.items.length === 0 && <strong>{t("You have no rights until you add a second factor.")}</strong>}
      </div>
    </PlainList>
  );
}
