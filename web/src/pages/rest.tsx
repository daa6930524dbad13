/** The pages of those who run the platform. */
import type { ReactElement } from "react";
import { Redirect } from "wouter";
import type { Me } from "../api";
import { Tokens, Users } from "./access";
import { Account } from "./account";
import { Audit } from "./audit";
import { Backups } from "./backups";
import { Drills } from "./drills";
import { Forecasts } from "./forecasts";
import { Projects } from "./projects";
import { Replicas } from "./replicas";
import { Settings } from "./settings";
import { Sites } from "./sites";
import { Templates } from "./templates";

export default function Rest({ page, me }: { page: string; me: Me }): ReactElement {
  switch (page) {
    case "backups":
      return <Backups me={me} />;
    case "replicas":
      return <Replicas me={me} />;
    case "forecasts":
      return <Forecasts />;
    case "drills":
      return <Drills />;
    case "sites":
      return <Sites me={me} />;
    case "projects":
      return <Projects me={me} />;
    case "templates":
      return <Templates me={me} />;
    case "users":
      return <Users me={me} />;
    case "tokens":
      return <Tokens />;
    case "audit":
      return <Audit me={me} />;
    case "settings":
      return <Settings me={me} />;
    case "account":
      return <Account me={me} />;
    default:
      return <Redirect to="/" />;
  }
}
