/** The frame around all pages: who is logged in, how current the page is, and where else to go. */
import {
  Button,
  Label,
  Masthead,
  MastheadBrand,
  MastheadContent,
  MastheadLogo,
  MastheadMain,
  MastheadToggle,
  Nav,
  NavItem,
  NavList,
  Page,
  PageSection,
  PageSidebar,
  PageSidebarBody,
  PageToggleButton,
  SkipToContent,
  ToggleGroup,
  ToggleGroupItem,
} from "@patternfly/react-core";
import { lazy, type ReactElement, Suspense, useEffect, useState } from "react";
import { Link, Redirect, Route, Router, Switch, useLocation } from "wouter";
import type { Me } from "./api";
import { Boundary } from "./components/boundary";
import { Notices } from "./components/notices";
import { OperationDialog } from "./components/operation";
import { Keyboard } from "./components/palette";
import { endHeld, HeldAlert, useHeld } from "./components/undo";
import { m, t } from "./i18n";
import { useWatchState, watch } from "./live";
import { Create } from "./pages/create";
import { Events } from "./pages/events";
import { Login } from "./pages/login";
import { Migrations } from "./pages/migrations";
import { Nodes } from "./pages/nodes";
import { Overview } from "./pages/overview";
import { Images } from "./pages/images";
import { Networks, SecurityGroups } from "./pages/networks";
import { Volumes } from "./pages/volumes";
import { VmPage } from "./pages/vm";
import { Vms } from "./pages/vms";
import { logout, useSession } from "./session";
import { chooseTheme, chosenTheme, type Theme } from "./theme";

const PAGES = [
  ["/", m("Overview")],
  ["/vms", m("Virtual machines")],
  ["/migrations", m("Migrations")],
  ["/nodes", m("Nodes")],
  ["/images", m("Images")],
  ["/templates", m("Flavors and templates")],
  ["/networks", m("Networks")],
  ["/volumes", m("Volumes")],
  ["/backups", m("Backups")],
  ["/replicas", m("Replicas")],
  ["/security-groups", m("Security groups")],
  ["/events", m("Events")],
  ["/forecasts", m("Forecasts")],
  ["/drills", m("Drills")],
  ["/sites", m("Sites and links")],
  ["/projects", m("Projects")],
  ["/users", m("Users and roles")],
  ["/tokens", m("Tokens and sessions")],
  ["/audit", m("Audit log")],
  ["/settings", m("Settings")],
  ["/account", m("Your account")],
] as const;

const ENTRIES = [...PAGES.map(([path, title]) => ({ path, title })), { path: "/vms/create", title: m("Create a VM") }];

export function App(): ReactElement | null {
  const session = useSession();
  const me = session.state === "in" || session.state === "ended" ? session.me : null;
  useEffect(() => {
    if (session.state !== "in") {
      endHeld();
      return undefined;
    }
    watch.start();
    return () => watch.stop();
  }, [session.state]);
  if (session.state === "asking") return <p role="status">{t("Asking the server …")}</p>;
  if (session.state === "out") return <Login step={null} reason={session.reason} />;
  if (session.state === "link") return <Login step={null} reason={null} link={session.secret} />;
  if (session.state === "second-factor") return <Login step={session.step} reason={null} />;
  if (me === null) return null;
  return (
    <Router base="/ui">
      <Switch>
        <Route path="/vms/:id/console/:kind">
          {({ id, kind }) => (
            <Suspense fallback={<p role="status">{t("Loading the console …")}</p>}>
              <ConsoleWindow id={id} kind={kind} me={me} />
            </Suspense>
          )}
        </Route>
        <Route>
          <Frame me={me} />
        </Route>
      </Switch>
      {session.state === "ended" && (
        <div className="nc-overlay" role="dialog" aria-modal="true" aria-label={t("Log in again")}>
          <Login step={session.step} reason={t("Your session has ended. Log in again: this page stays as it is.")} user={me.user} />
        </div>
      )}
    </Router>
  );
}

/** What is held back is not sent after a logout; ended first, the browser does not ask about it either. */
function leave(): void {
  endHeld();
  void logout();
}

function Frame({ me }: { me: Me }): ReactElement {
  const held = useHeld();
  const [at] = useLocation();
  const [open, setOpen] = useState(() => window.innerWidth >= 1200);
  const masthead = (
    <Masthead>
      <MastheadMain>
        <MastheadToggle>
          <PageToggleButton isHamburgerButton aria-label={t("Navigation")} isSidebarOpen={open} onSidebarToggle={() => setOpen(!open)} />
        </MastheadToggle>
        <MastheadBrand>
          <MastheadLogo component={(props) => <Link {...props} href="/" />}>{t("NovaCron")}</MastheadLogo>
        </MastheadBrand>
      </MastheadMain>
      <MastheadContent>
        <div className="nc-bar nc-grow">
          <Freshness />
          <span className="nc-grow" />
          <ThemeChoice />
          <span>{me.user}</span>
          <Button variant="secondary" size="sm" onClick={leave}>
            {t("Log out")}
          </Button>
        </div>
      </MastheadContent>
    </Masthead>
  );
  const sidebar = (
    <PageSidebar isSidebarOpen={open}>
      <PageSidebarBody>
        <Nav aria-label={t("Pages")}>
          <NavList>
            {PAGES.map(([path, title]) => (
              <NavItem key={path} isActive={path === "/" ? at === "/" : at.startsWith(path)}>
                <Link href={path}>{t(title)}</Link>
              </NavItem>
            ))}
          </NavList>
        </Nav>
      </PageSidebarBody>
    </PageSidebar>
  );
  return (
    <Page masthead={masthead} sidebar={sidebar} mainContainerId="main" skipToContent={<SkipToContent href="#main">{t("Skip to the content")}</SkipToContent>}>
      <PageSection isFilled aria-label={t("Content")}>
        <Boundary key={at}>
          <Pages me={me} />
        </Boundary>
      </PageSection>
      <OperationDialog />
      <Keyboard pages={ENTRIES} />
      <Notices>
        {held.map((one) => (
          <HeldAlert key={`held ${one.id}`} held={one} />
        ))}
      </Notices>
    </Page>
  );
}

function Pages({ me }: { me: Me }): ReactElement {
  return (
    <Switch>
      <Route path="/">
        <Overview me={me} />
      </Route>
      <Route path="/vms">
        <Vms me={me} />
      </Route>
      <Route path="/vms/create">
        <Create me={me} />
      </Route>
      <Route path="/vms/:id">{({ id }) => <VmPage key={id} id={id} me={me} />}</Route>
      <Route path="/migrations">
        <Migrations me={me} />
      </Route>
      <Route path="/nodes">
        <Nodes me={me} />
      </Route>
      <Route path="/images">
        <Images me={me} />
      </Route>
      <Route path="/networks">
        <Networks me={me} />
      </Route>
      <Route path="/volumes">
        <Volumes me={me} />
      </Route>
      <Route path="/events">
        <Events />
      </Route>
      <Route path="/security-groups">
        <SecurityGroups me={me} />
      </Route>
      <Route path="/backups/:id/files">{({ id }) => <Files key={id} id={id} me={me} />}</Route>
      <Route path="/:page">{({ page }) => <Administration page={page} me={me} />}</Route>
      <Route>
        <Redirect to="/" />
      </Route>
    </Switch>
  );
}

/** Pages that few people open: loaded when one does. */
const Rest = lazy(() => import("./pages/rest"));
const ConsoleWindow = lazy(() => import("./pages/console"));
const BackupFiles = lazy(() => import("./pages/backup_files"));

function Files({ id, me }: { id: string; me: Me }): ReactElement {
  return (
    <Suspense fallback={<p role="status">{t("Loading the page …")}</p>}>
      <BackupFiles id={id} me={me} />
    </Suspense>
  );
}

function Administration({ page, me }: { page: string; me: Me }): ReactElement {
  return (
    <Suspense fallback={<p role="status">{t("Loading the page …")}</p>}>
      <Rest page={page} me={me} />
    </Suspense>
  );
}

/** Says up to when the page is current, and that it is not. */
function Freshness(): ReactElement {
  const { state, revision, since } = useWatchState();
  const at = new Date(since).toLocaleTimeString();
  if (state === "current") {
    return (
      <Label color="green" variant="outline" data-testid="freshness">
        {t("current, revision {revision}", { revision })}
      </Label>
    );
  }
  return (
    <span role="alert">
      <Label color={state === "connecting" ? "blue" : "orange"} data-testid="freshness">
        {state === "connecting" && t("connecting")}
        {state === "behind" && t("behind since {at}: shows revision {revision}; connecting again", { at, revision })}
        {state === "ended" && t("the session has ended: shows revision {revision}", { revision })}
      </Label>
    </span>
  );
}

const THEMES: readonly Theme[] = ["system", "light", "dark"];

function ThemeChoice(): ReactElement {
  const [chosen, setChosen] = useState(chosenTheme);
  return (
    <ToggleGroup aria-label={t("Theme")} isCompact>
      {THEMES.map((theme) => (
        <ToggleGroupItem
          key={theme}
          text={t(theme)}
          isSelected={theme === chosen}
          onChange={() => {
            chooseTheme(theme);
            setChosen(theme);
          }}
        />
      ))}
    </ToggleGroup>
  );
}
