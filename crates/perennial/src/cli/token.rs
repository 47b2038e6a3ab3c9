//! `perennial token`: made, listed, revoked.

use jiff::SignedDuration;
use perennial_core::id::TokenId;

use super::args::{ScopeArg, TokenCommand, TokenCreateArgs};
use super::failure::{Exit, Failure};
use super::human::{ago, maybe_ago};
use super::out::{Colour, clean};
use super::session::Context;
use super::table::Rows;
use crate::api::wire::{CreateToken, CreatedToken, Scope, Token};

/// Runs `token`.
pub async fn run(context: &mut Context<'_>, command: TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::Create(args) => create(context, args).await,
        TokenCommand::Ls { user } => {
            let query: Vec<(&str, &str)> = user.iter().map(|user| ("user", user.as_str())).collect();
            let tokens: Vec<Token> = context.client.list(&["tokens"], &query).await?;
            context.show(&tokens, |tokens, out, now| {
                let mut rows =
                    Rows::new(&["ID", "USER", "NAME", "SCOPES", "TENANT", "STATE", "USED", "AGE", "MADE BY"]);
                for token in tokens {
                    let (state, colour) = match (token.revoked_at, token.expires_at) {
                        (Some(_), _) => ("revoked".to_owned(), Some(Colour::Red)),
                        (None, Some(end)) if end <= now => ("expired".to_owned(), Some(Colour::Yellow)),
                        (None, Some(end)) => (format!("until {end:.0}"), None),
                        (None, None) => ("good".to_owned(), None),
                    };
                    rows.row(
                        colour,
                        [
                            token.id.clone(),
                            token.user.clone(),
                            token.name.clone(),
                            token.scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(","),
                            token.tenant.clone().unwrap_or_else(|| "all".to_owned()),
                            state,
                            maybe_ago(token.last_used_at, now),
                            ago(token.created_at, now),
                            token.created_by.clone(),
                        ],
                    );
                }
                rows.render(out)
            })
        }
        TokenCommand::Revoke { token } => {
            // A token in the address of a request would be in places that nobody can clean.
            if token.parse::<TokenId>().is_err() {
                let message = "what is revoked is named by its id, not by the token itself";
                return Err(Failure::new(Exit::Invalid, message, "perennial token ls shows the ids"));
            }
            let revoked: Token = context.client.delete(&["tokens", &token], None::<&()>).await?;
            context.show(&revoked, |token, _, _| {
                format!("token {} of user {} is revoked", clean(&token.id), clean(&token.user))
            })
        }
    }
}

async fn create(context: &mut Context<'_>, args: TokenCreateArgs) -> Result<(), Failure> {
    let end = |time| {
        let end = SignedDuration::try_from(time).ok().and_then(|time| context.now().checked_add(time).ok());
        end.ok_or_else(|| Failure::usage("--expires is too long", "leave it out for a token that does not expire"))
    };
    let scopes = args.scopes.iter().map(|scope| match scope {
        ScopeArg::Read => Scope::Read,
        ScopeArg::Operate => Scope::Operate,
        ScopeArg::Admin => Scope::Admin,
    });
    let request = CreateToken {
        name: args.name,
        user: args.user,
        scopes: scopes.collect(),
        tenant: args.tenant,
        expires_at: args.expires.map(end).transpose()?,
    };
    let made: CreatedToken = context.client.post_once(&["tokens"], &request).await?;
    let (id, user) = (clean(&made.token.id), clean(&made.token.user));
    context.out.note(&format!("token {id} of user {user}; nobody can show it again:"));
    context.show(&made, |made, _, _| clean(&made.secret.0).to_string())
}
