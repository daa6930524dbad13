/** Logging in: name and password, then a second factor where the user has one. */
import { Button, Card, CardBody, CardTitle, Form, FormGroup, TextInput } from "@patternfly/react-core";
import { type FormEvent, type ReactElement, useEffect, useState } from "react";
import type { SecondFactorStep } from "../api";
import { Refusal } from "../components/notices";
import { login, loginWithLink, secondFactor, securityKey } from "../session";
import { t } from "../i18n";

interface Props {
  step: SecondFactorStep | null;
  /** Why somebody has to log in who did not ask for it. */
  reason: string | null;
  user?: string;
  /** The secret of a link that logs its user in. */
  link?: string;
}

/** Run one attempt at a time, and keep what it was refused with. */
function useAttempt(): { busy: boolean; error: unknown; run: (attempt: () => Promise<void>) => void } {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const run = (attempt: () => Promise<void>): void => {
    setBusy(true);
    setError(null);
    attempt()
      .catch(setError)
      .finally(() => setBusy(false));
  };
  return { busy, error, run };
}

export function Login({ step, reason, user, link }: Props): ReactElement {
  return (
    <div className="nc-login">
      <Card>
        <CardTitle component="h1">{t("NovaCron")}</CardTitle>
        <CardBody>
          {reason !== null && <p role="status">{reason}</p>}
          {step !== null && <SecondFactor step={step} />}
          {step === null && link !== undefined && <WithLink secret={link} />}
          {step === null && <Password {...(user === undefined ? {} : { user })} />}
        </CardBody>
      </Card>
    </div>
  );
}

/** Programs that look at links do not press buttons: they use none up. */
function WithLink({ secret }: { secret: string }): ReactElement {
  const { busy, error, run } = useAttempt();
  const submit = (event: FormEvent): void => {
    event.preventDefault();
    run(() => loginWithLink(secret));
  };
  return (
    <Form onSubmit={submit}>
      {error !== null && <Refusal title={t("Not logged in")} error={error} />}
      <Button type="submit" isBlock isLoading={busy} isDisabled={busy}>
        {t("Log in with this link")}
      </Button>
    </Form>
  );
}

function Password({ user = "" }: { user?: string }): ReactElement {
  const [name, setName] = useState(user);
  const [password, setPassword] = useState("");
  const [oidc, setOidc] = useState(false);
  const { busy, error, run } = useAttempt();
  useEffect(() => {
    fetch("/ui/settings.json")
      .then((answer) => answer.json())
      .then((settings: { oidc?: boolean }) => setOidc(settings.oidc === true))
      .catch(() => undefined); // only the button is missing
  }, []);
  const submit = (event: FormEvent): void => {
    event.preventDefault();
    run(() => login(name, password));
  };
  return (
    <Form onSubmit={submit}>
      {error !== null && <Refusal title={t("Not logged in")} error={error} />}
      <FormGroup label={t("User")} fieldId="user">
        <TextInput id="user" autoComplete="username" isRequired value={name} onChange={(_, value) => setName(value)} />
      </FormGroup>
      <FormGroup label={t("Password")} fieldId="password">
        <TextInput
          id="password"
          type="password"
          autoComplete="current-password"
          isRequired
          value={password}
          onChange={(_, value) => setPassword(value)}
        />
      </FormGroup>
      <Button type="submit" isBlock isLoading={busy} isDisabled={busy || name === "" || password === ""}>
        {t("Log in")}
      </Button>
      {oidc && (
        <Button variant="secondary" isBlock component="a" href="/api/v1/oidc/login">
          {t("Log in with your organisation's account")}
        </Button>
      )}
    </Form>
  );
}

function SecondFactor({ step }: { step: SecondFactorStep }): ReactElement {
  const [code, setCode] = useState("");
  const [recovery, setRecovery] = useState(!step.factors.includes("totp"));
  const { busy, error, run } = useAttempt();
  const submit = (event: FormEvent): void => {
    event.preventDefault();
    run(() => secondFactor(step, recovery ? { recovery_code: code } : { code }));
  };
  return (
    <Form onSubmit={submit}>
      {error !== null && <Refusal title={t("Not logged in")} error={error} />}
      {step.factors.includes("webauthn") && (
        <Button isBlock isDisabled={busy} onClick={() => run(async () => secondFactor(step, { credential: await securityKey(step) }))}>
          {t("Use a security key")}
        </Button>
      )}
      <FormGroup label={recovery ? t("Recovery code") : t("Code of your app")} fieldId="code">
        <TextInput id="code" autoComplete="one-time-code" value={code} onChange={(_, value) => setCode(value)} />
      </FormGroup>
      <Button type="submit" isBlock isLoading={busy} isDisabled={busy || code === ""}>
        {t("Log in")}
      </Button>
      <Button variant="link" onClick={() => setRecovery(!recovery)}>
        {recovery ? t("Use a code of the app instead") : t("Use a recovery code instead")}
      </Button>
    </Form>
  );
}
