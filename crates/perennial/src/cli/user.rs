//! `perennial user` and `perennial whoami`: who may ask for what.

use super::args::{RoleArg, UserCommand, UserCreateArgs};
use super::failure::{Exit, Failure};
use super::human::ago;
use super::out::{Colour, Out, clean};
use super::session::Context;
use super::table::{Facts, Rows};
use crate::api::wire::{CreateUser, Me, PatchUser, Role, Secret, User};

/// Runs `user`.
pub async fn run(context: &mut Context<'_>, command: UserCommand) -> Result<(), Failure> {
    match command {
        UserCommand::Create(args) => {
            let request = created(args)?;
            let user: User = context.client.post_once(&["users"], &request).await?;
            context.show(&user, |user, out, _| facts(user, out))
        }
        UserCommand::Ls => {
            let users: Vec<User> = context.client.list(&["users"], &[]).await?;
            context.show(&users, |users, out, now| {
                let mut rows = Rows::new(&["NAME", "ROLE", "STATE", "TENANTS", "ADDRESS", "AGE"]);
                for user in users {
                    rows.row(
                        user.disabled.then_some(Colour::Yellow),
                        [
                            user.name.clone(),
                            user.role.to_string(),
                            state(user).to_owned(),
                            user.tenants.join(", "),
                            user.email.clone().unwrap_or_default(),
                            ago(user.created_at, now),
                        ],
                    );
                }
                rows.render(out)
            })
        }
        UserCommand::Show { user } => {
            let user: User = context.client.get(&["users", &user], &[]).await?;
            context.show(&user, |user, out, _| facts(user, out))
        }
        UserCommand::Disable { user } => switch(context, &user, true).await,
        UserCommand::Enable { user } => switch(context, &user, false).await,
        UserCommand::Rm { user } => {
            let path = ["users", user.as_str()];
            context.client.delete::<()>(&path, None::<&()>).await?;
            context.out.note(&format!("user {} is removed, with all tokens", clean(&user)));
            Ok(())
        }
    }
}

async fn switch(context: &mut Context<'_>, name: &str, disabled: bool) -> Result<(), Failure> {
    let patch = PatchUser { disabled: Some(disabled), ..PatchUser::default() };
    let user: User = context.client.patch(&["users", name], None, &patch).await?;
    context.show(&user, |user, out, _| facts(user, out))
}

fn created(args: UserCreateArgs) -> Result<CreateUser, Failure> {
    let read = |file: std::path::PathBuf| {
        let text = std::fs::read_to_string(&file).map_err(|error| {
            let message = format!("cannot read the password in {}: {error}", file.display());
            Failure::new(Exit::Usage, message, "--password-file names a file whose first line is the password")
        })?;
        Ok::<_, Failure>(Secret(text.lines().next().unwrap_or_default().to_owned()))
    };
    let role = match args.role {
        RoleArg::User => Role::User,
        RoleArg::Admin => Role::Admin,
    };
    let password = args.password_file.map(read).transpose()?;
    Ok(CreateUser { name: args.name, email: args.email, role: Some(role), password })
}

fn state(user: &User) -> &'static str {
    if user.disabled { "disabled" } else { "enabled" }
}

fn facts(user: &User, out: &Out) -> String {
    let mut facts = Facts::default();
    facts.fact("Name", &user.name).fact("Role", user.role.as_str()).fact("State", state(user));
    facts.fact("Tenants", if user.tenants.is_empty() { "none".to_owned() } else { user.tenants.join(", ") });
    facts.maybe("Address", user.email.as_ref());
    facts.fact("Password", if user.has_password { "set" } else { "none" });
    facts.fact("Since", user.created_at.to_string());
    facts.render(out)
}

/// Runs `whoami`.
pub async fn whoami(context: &mut Context<'_>) -> Result<(), Failure> {
    let me: Me = context.client.get(&["me"], &[]).await?;
    context.show(&me, |me, out, _| {
        let mut facts = Facts::default();
        facts.fact("User", me.user.as_deref().unwrap_or("none: this is the administrator's token"));
        facts.fact("Role", me.role.as_str());
        facts.fact("Scopes", me.scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(", "));
        facts.fact(
            "Tenants",
            match &me.tenants {
                None => "all".to_owned(),
                Some(none) if none.is_empty() => "none".to_owned(),
                Some(tenants) => tenants.join(", "),
            },
        );
        if let Some(token) = &me.token {
            facts.fact("Token", &token.id);
            facts.fact("Expires", token.expires_at.map_or_else(|| "never".to_owned(), |end| end.to_string()));
        }
        facts.fact("In events", &me.actor);
        facts.render(out)
    })
}
