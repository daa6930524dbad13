/** Who may do what: users, their roles, tokens and sessions, and invitations. */
import { FormSelect, FormSelectOption } from "@patternfly/react-core";
import { type ReactElement, useState } from "react";
import { answered, client, type Me, type Schemas } from "../api";
import { When } from "../components/labels";
import { given, number, type Operation, OperationBar } from "../components/operation";
import { PlainList } from "../components/plain";
import { Secret } from "../components/secret";
import { m, t } from "../i18n";
import { refusalFor } from "../session";

type User = Schemas["User"];
type Grant = Schemas["Grant"];
type Token = Schemas["ShownToken"];
type Role = Schemas["Role"];
type Right = Schemas["Right"];

const ROLES = Object.keys({ viewer: true, member: true, operator: true, administrator: true } satisfies Record<Role, true>);
const RIGHTS = Object.keys({ read: true, write: true, console: true, operate: true, manage: true, metrics: true, join: true } satisfies Record<Right, true>);

function Factors({ items, recovery_codes, locked }: Schemas["SecondFactors"]): ReactElement {
  return (
    <>
      <ul>
        {items.map((factor) => (
          <li key={factor.id}>
            {factor.name} ({factor.kind})
          </li>
        ))}
      </ul>
      <p>{t("{count} recovery codes are left", { count: recovery_codes })}</p>
      {locked && <p>{t("Codes of apps are refused, because too many were wrong.")}</p>}
    </>
  );
}

function createUser(me: Me): Operation {
  return {
    label: m("Create a user"),
    refusal: refusalFor(me, "manage"),
    fields: [
      { name: "name", label: m("Name") },
      { name: "kind", label: m("Kind"), options: Object.keys({ person: true, service: true } satisfies Record<Schemas["UserKind"], true>) },
      { name: "password", label: m("Password"), kind: "password", optional: true, help: m("Empty: the user can't log in with one.") },
      { name: "project", label: m("Project"), optional: true, help: m("For a service account that belongs to one.") },
    ],
    command: (v) => `novacron user create ${v["name"]}`,
    run: (v) => answered(client.POST("/api/v1/users", { body: { name: v["name"] ?? "", kind: v["kind"] as User["kind"], password: given(v["password"]), project: given(v["project"]) } })),
  };
}

function ofUser(me: Me, user: User): Operation[] {
  const at = { params: { path: { ref: user.id } } };
  const subject = user.name;
  const refusal = refusalFor(me, "manage");
  return [
    { label: m("Set password"), subject, refusal, fields: [{ name: "password", label: m("Password"), kind: "password" }], command: () => `novacron user set-password ${user.name}`, run: (v) => answered(client.PUT("/api/v1/users/{ref}/password", { ...at, body: { password: v["password"] ?? "" } })) },
    {
      label: user.disabled ? m("Enable") : m("Disable"),
      subject,
      refusal,
      warning: user.disabled ? m("The user can log in again.") : m("The user's sessions end and tokens stop working, at once."),
      command: () => `novacron user ${user.disabled ? "enable" : "disable"} ${user.name}`,
      run: () => answered(client.PATCH("/api/v1/users/{ref}", { ...at, body: { disabled: !user.disabled } })),
    },
    {
      label: user.second_factor_required ? m("Don't require a second factor") : m("Require a second factor"),
      subject,
      refusal,
      warning: user.second_factor_required ? m("A password alone is enough from now on.") : m("The user's sessions end; the next login has no rights until a second factor is added."),
      command: () => `novacron user require-second-factor ${user.name}`,
      run: () => answered(client.PATCH("/api/v1/users/{ref}", { ...at, body: { second_factor_required: !user.second_factor_required } })),
    },
    { label: m("Second factors"), subject, refusal, run: () => answered(client.GET("/api/v1/users/{ref}/second-factors", at)), show: (factors: Schemas["SecondFactors"]) => <Factors {...factors} /> },
    {
      label: m("Reset second factors"),
      subject,
      refusal,
      warning: m("All second factors and recovery codes of the user are removed. Do this only for somebody whom you know to have lost them."),
      command: () => `novacron second-factor reset ${user.name}`,
      run: () => answered(client.DELETE("/api/v1/users/{ref}/second-factors", at)),
    },
    {
      label: m("Delete"),
      subject,
      refusal: refusal ?? (user.name === me.user ? m("That is you.") : null),
      warning: m("The user is deleted with all tokens and roles. Nobody can undo that."),
      confirm: user.name,
      undo: false,
      command: () => `novacron user delete ${user.name}`,
      run: () => answered(client.DELETE("/api/v1/users/{ref}", at)),
    },
  ];
}

export function Users({ me }: { me: Me }): ReactElement {
  return (
    <div className="nc-page">
      <PlainList
        level="h1"
        title={m("Users")}
        name={["users"]}
        fetchPage={(cursor) => answered(client.GET("/api/v1/users", { params: { query: { limit: 200, ...(cursor !== undefined && { cursor }) } } }))}
        keyOf={(user) => user.id}
        empty={m("There is no user that you may see.")}
        create={createUser(me)}
        columns={[
          { title: m("Name"), width: "minmax(9rem, 1fr)", cell: (user) => user.name },
          { title: m("Kind"), width: "6rem", cell: (user) => user.kind },
          { title: m("State"), width: "7rem", cell: (user) => (user.disabled ? "disabled" : "enabled") },
          { title: m("Second factor"), width: "8rem", cell: (user) => (user.second_factor_required ? "required" : "optional") },
          { title: m("Provider"), width: "minmax(6rem, 1fr)", cell: (user) => user.issuer ?? "-" },
          { title: m("Created"), width: "13rem", cell: (user) => <When at={user.created_at} />, text: (user) => user.created_at },
          { title: "", width: "46rem", cell: (user) => <OperationBar operations={ofUser(me, user)} /> },
        ]}
      />
      <Roles me={me} />
      <Invitations me={me} />
    </div>
  );
}

function ofGrant(me: Me, grant: Grant): Operation[] {
  return [
    {
      label: m("Revoke"),
      subject: `${grant.user_name} ${grant.role}`,
      refusal: refusalFor(me, "manage", grant.project),
      warning: m("The user loses this role at once."),
      command: () => `novacron grant delete ${grant.id}`,
      run: () => answered(client.DELETE("/api/v1/grants/{id}", { params: { path: { id: grant.id } } })),
    },
  ];
}

function Roles({ me }: { me: Me }): ReactElement {
  const create: Operation = {
    label: m("Give a role"),
    refusal: refusalFor(me, "manage", me.project),
    fields: [
      { name: "user", label: m("User") },
      { name: "role", label: m("Role"), options: ROLES },
      { name: "project", label: m("Project"), optional: true, help: m("Empty: everywhere.") },
    ],
    command: (v) => `novacron grant create ${v["user"]} ${v["role"]}${given(v["project"]) ? ` --project ${v["project"]}` : ""}`,
    run: (v) => answered(client.POST("/api/v1/grants", { body: { user: v["user"] ?? "", role: v["role"] as Role, project: given(v["project"]) } })),
  };
  return (
    <PlainList
      title={m("Roles")}
      name={["grants"]}
      fetchPage={(cursor) => answered(client.GET("/api/v1/grants", { params: { query: { limit: 200, ...(cursor !== undefined && { cursor }) } } }))}
      keyOf={(grant) => grant.id}
      empty={m("Nobody has a role that you may see.")}
      create={create}
      columns={[
        { title: m("User"), width: "minmax(9rem, 1fr)", cell: (grant) => grant.user_name },
        { title: m("Role"), width: "9rem", cell: (grant) => grant.role },
        { title: m("Project"), width: "minmax(8rem, 1fr)", cell: (grant) => grant.project ?? t("everywhere") },
        { title: m("Since"), width: "13rem", cell: (grant) => <When at={grant.created_at} />, text: (grant) => grant.created_at },
        { title: "", width: "7rem", cell: (grant) => <OperationBar operations={ofGrant(me, grant)} /> },
      ]}
    />
  );
}

function Invitations({ me }: { me: Me }): ReactElement {
  return (
    <PlainList
      title={m("Invitations")}
      name={["invitations"]}
      fetchPage={() => answered(client.GET("/api/v1/invitations"))}
      keyOf={(invitation) => invitation.id}
      empty={m("There is no open invitation.")}
      columns={[
        { title: m("User"), width: "minmax(9rem, 1fr)", cell: (invitation) => invitation.user_name },
        { title: m("Role"), width: "9rem", cell: (invitation) => invitation.role },
        { title: m("Project"), width: "minmax(8rem, 1fr)", cell: (invitation) => invitation.project },
        { title: m("By"), width: "minmax(8rem, 1fr)", cell: (invitation) => invitation.actor },
        { title: m("Until"), width: "13rem", cell: (invitation) => <When at={invitation.expires_at} />, text: (invitation) => invitation.expires_at },
        {
          title: "",
          width: "12rem",
          cell: ({ id, user_name, project }) => {
            const at = { params: { path: { id } } };
            return (
              <OperationBar
                operations={[
                  { label: m("Accept"), subject: project, refusal: user_name === me.user ? null : m("It is for somebody else."), command: () => `novacron invitation accept ${id}`, run: () => answered(client.POST("/api/v1/invitations/{id}/actions/accept", at)) },
                  { label: m("Delete"), subject: `${user_name} ${project}`, warning: m("The invitation is declined or withdrawn."), command: () => `novacron invitation delete ${id}`, run: () => answered(client.DELETE("/api/v1/invitations/{id}", at)) },
                ]}
              />
            );
          },
        },
      ]}
    />
  );
}

function createToken(user: string | undefined): Operation {
  return {
    label: m("Create a token"),
    fields: [
      { name: "name", label: m("Name") },
      { name: "scope", label: m("Only this right"), options: ["", ...RIGHTS] },
      { name: "project", label: m("Only in this project"), optional: true },
      { name: "days", label: m("Days until it expires"), kind: "number", optional: true, help: m("Empty: it never expires.") },
    ],
    command: (v) => `novacron token create ${v["name"]}${given(v["days"]) ? ` --days ${v["days"]}` : ""}`,
    run: (v) => {
      const days = number(v["days"]);
      const scope = given(v["scope"]);
      return answered(
        client.POST("/api/v1/tokens", {
          body: { name: v["name"] ?? "", user, scopes: scope === undefined ? undefined : [scope as Right], project: given(v["project"]), expires_in_s: days === undefined ? undefined : Math.round(days * 86_400) },
        }),
      );
    },
    show: (token: Schemas["CreatedToken"]) => <Secret>{token.secret}</Secret>,
  };
}

/** The tokens and sessions of one user, or of all that the caller may see. */
export function Tokens({ user }: { user?: string }): ReactElement {
  const [kind, setKind] = useState("");
  const query = user === undefined ? {} : { user };
  return (
    <PlainList<Token>
      title={m("Tokens and sessions")}
      level={user === undefined ? "h1" : "h2"}
      name={["tokens", user, kind]}
      fetchPage={async () => {
        const { items } = await answered(client.GET("/api/v1/tokens", { params: { query } }));
        return { items: items.filter((token) => !token.revoked && (kind === "" || token.kind === kind)) };
      }}
      keyOf={(token) => token.id}
      empty={m("There is none.")}
      create={createToken(user)}
      columns={[
        { title: m("Name"), width: "minmax(9rem, 1fr)", cell: (token) => token.name },
        { title: m("User"), width: "minmax(8rem, 1fr)", cell: (token) => token.user_name },
        { title: m("Kind"), width: "6rem", cell: (token) => token.kind },
        { title: m("Rights"), width: "minmax(7rem, 1fr)", cell: (token) => token.scopes?.join(", ") ?? t("all of the user's") },
        { title: m("Last used"), width: "13rem", cell: (token) => (token.used_at === null ? "-" : <When at={token.used_at} />), text: (token) => token.used_at ?? "" },
        { title: m("From"), width: "minmax(7rem, 1fr)", cell: (token) => token.used_from ?? "-" },
        { title: m("Until"), width: "13rem", cell: (token) => (token.expires_at === null ? "-" : <When at={token.expires_at} />), text: (token) => token.expires_at ?? "" },
        {
          title: "",
          width: "7rem",
          cell: (token) => (
            <OperationBar
              operations={[
                {
                  label: token.kind === "session" ? m("End") : m("Revoke"),
                  subject: `${token.user_name} ${token.name}`,
                  warning: token.kind === "session" ? m("The session ends at once, with its streams and consoles.") : m("The token stops working at once."),
                  command: () => `novacron token revoke ${token.id}`,
                  run: () => answered(client.DELETE("/api/v1/tokens/{id}", { params: { path: { id: token.id } } })),
                },
              ]}
            />
          ),
        },
      ]}
    >
      <div className="nc-bar">
        <FormSelect className="nc-filter" aria-label={t("Kind")} value={kind} onChange={(_, chosen) => setKind(chosen)}>
          <FormSelectOption value="" label={t("Any kind")} />
          <FormSelectOption value="api" label={t("Tokens")} />
          <FormSelectOption value="session" label={t("Sessions")} />
        </FormSelect>
      </div>
    </PlainList>
  );
}
