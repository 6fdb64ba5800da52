//! `spire-server`: its commands and their flags.

mod agent;
mod authority;
mod bundle;
pub(super) mod debug;
mod entry;
mod federation;
pub(super) mod health;
pub(super) mod logger;
pub(super) mod mint;
pub(super) mod run;
mod token;

use countersign_identity::SpiffeId;
use countersign_identity::id::IdError;
use countersign_wire::{id, types};

use super::command::{Command, Manner};
use super::connect::SERVER;
use super::flags::OUTPUT;
use super::go;
use crate::commands::INPUT_BYTES_MAX;
use crate::output::Failure;

const fn command(
    name: &'static str,
    synopsis: &'static str,
    flags: &'static [&'static [super::flags::Flag]],
    work: fn(super::flags::Given) -> super::command::Work,
) -> Command {
    Command { name, called: name, synopsis, manner: Manner::CLIENT, flags, work }
}

const COMMANDS: &[Command] = &[
    command("agent ban", "Bans an agent until it is evicted", &[SERVER, OUTPUT, agent::ONE], |g| Box::pin(agent::ban(g))),
    command("agent count", "Counts attested agents", &[SERVER, OUTPUT, agent::FILTER], |g| Box::pin(agent::count(g))),
    command("agent evict", "Evicts an agent, which has to attest again", &[SERVER, OUTPUT, agent::ONE], |g| Box::pin(agent::evict(g))),
    command("agent list", "Lists attested agents", &[SERVER, OUTPUT, agent::FILTER], |g| Box::pin(agent::list(g))),
    command("agent purge", "Evicts agents whose SVID ended long ago", &[SERVER, OUTPUT, agent::PURGE], |g| Box::pin(agent::purge(g))),
    command("agent show", "Shows one attested agent", &[SERVER, OUTPUT, agent::ONE], |g| Box::pin(agent::show_one(g))),
    command("bundle count", "Counts bundles", &[SERVER, OUTPUT], |g| Box::pin(bundle::count(g))),
    command("bundle delete", "Deletes the bundle of a foreign trust domain", &[SERVER, OUTPUT, bundle::DELETE], |g| {
        Box::pin(bundle::delete(g))
    }),
    command("bundle list", "Lists bundles of foreign trust domains", &[SERVER, OUTPUT, bundle::LIST], |g| Box::pin(bundle::list(g))),
    command("bundle set", "Adds or replaces the bundle of a foreign trust domain", &[SERVER, OUTPUT, bundle::SET], |g| {
        Box::pin(bundle::set(g))
    }),
    command("bundle show", "Prints the own bundle", &[SERVER, OUTPUT, bundle::SHOW], |g| Box::pin(bundle::show(g))),
    command("debug getinfo", "Shows what the server says about itself", &[SERVER, OUTPUT], |g| Box::pin(debug::info(g))),
    command("entry count", "Counts registration entries", &[SERVER, OUTPUT, entry::FILTER], |g| Box::pin(entry::count(g))),
    command("entry create", "Creates registration entries", &[SERVER, OUTPUT, entry::FIELDS, entry::CREATE], |g| {
        Box::pin(entry::create(g))
    }),
    command("entry delete", "Deletes registration entries", &[SERVER, OUTPUT, entry::DELETE], |g| Box::pin(entry::delete(g))),
    command("entry show", "Shows registration entries", &[SERVER, OUTPUT, entry::FILTER, entry::SHOW], |g| Box::pin(entry::show_all(g))),
    command("entry update", "Replaces registration entries", &[SERVER, OUTPUT, entry::FIELDS, entry::UPDATE], |g| {
        Box::pin(entry::update(g))
    }),
    command("federation create", "Creates a federation relationship", &[SERVER, OUTPUT, federation::FIELDS], |g| {
        Box::pin(federation::create(g))
    }),
    command("federation delete", "Deletes a federation relationship", &[SERVER, OUTPUT, federation::ID], |g| {
        Box::pin(federation::delete(g))
    }),
    command("federation list", "Lists federation relationships", &[SERVER, OUTPUT], |g| Box::pin(federation::list(g))),
    command("federation refresh", "Fetches a federated bundle now", &[SERVER, OUTPUT, federation::ID], |g| {
        Box::pin(federation::refresh(g))
    }),
    command("federation show", "Shows a federation relationship", &[SERVER, OUTPUT, federation::SHOW], |g| Box::pin(federation::show(g))),
    command("federation update", "Replaces a federation relationship", &[SERVER, OUTPUT, federation::FIELDS], |g| {
        Box::pin(federation::update(g))
    }),
    command("healthcheck", "Asks whether the server is healthy", &[SERVER, health::FLAGS], |g| Box::pin(health::check(g))),
    command("jwt mint", "Mints a JWT-SVID", &[SERVER, OUTPUT, mint::JWT], |g| Box::pin(mint::jwt(g))),
    command("localauthority jwt activate", "Signs with a prepared JWT authority from now on", &[SERVER, OUTPUT, authority::ID], |g| {
        Box::pin(authority::jwt_activate(g))
    }),
    command("localauthority jwt prepare", "Makes a JWT authority and publishes it", &[SERVER, OUTPUT], |g| {
        Box::pin(authority::jwt_prepare(g))
    }),
    command("localauthority jwt revoke", "Takes an old JWT authority out of the bundle", &[SERVER, OUTPUT, authority::ID], |g| {
        Box::pin(authority::jwt_revoke(g))
    }),
    command("localauthority jwt show", "Shows the JWT authorities", &[SERVER, OUTPUT], |g| Box::pin(authority::jwt_show(g))),
    command("localauthority jwt taint", "Marks an old JWT authority as tainted", &[SERVER, OUTPUT, authority::ID], |g| {
        Box::pin(authority::jwt_taint(g))
    }),
    command("localauthority x509 activate", "Signs with a prepared X.509 authority from now on", &[SERVER, OUTPUT, authority::ID], |g| {
        Box::pin(authority::x509_activate(g))
    }),
    command("localauthority x509 prepare", "Makes an X.509 authority and publishes it", &[SERVER, OUTPUT], |g| {
        Box::pin(authority::x509_prepare(g))
    }),
    command("localauthority x509 revoke", "Takes an old X.509 authority out of the bundle", &[SERVER, OUTPUT, authority::ID], |g| {
        Box::pin(authority::x509_revoke(g))
    }),
    command("localauthority x509 show", "Shows the X.509 authorities", &[SERVER, OUTPUT], |g| Box::pin(authority::x509_show(g))),
    command("localauthority x509 taint", "Marks an old X.509 authority as tainted", &[SERVER, OUTPUT, authority::ID], |g| {
        Box::pin(authority::x509_taint(g))
    }),
    command("logger get", "Shows the log level", &[SERVER, OUTPUT], |g| Box::pin(logger::get(g))),
    command("logger reset", "Goes back to the log level of the start", &[SERVER, OUTPUT], |g| Box::pin(logger::reset(g))),
    command("logger set", "Sets the log level", &[SERVER, OUTPUT, logger::SET], |g| Box::pin(logger::set(g))),
    Command { manner: Manner::PLAIN, ..command("run", "Runs the server", &[run::FLAGS], |g| Box::pin(run::run(g))) },
    Command {
        called: "generate",
        ..command("token generate", "Makes a join token", &[SERVER, OUTPUT, token::FLAGS], |g| Box::pin(token::generate(g)))
    },
    command(
        "upstreamauthority revoke",
        "Takes an upstream X.509 authority out of the bundle",
        &[SERVER, OUTPUT, authority::UPSTREAM],
        |g| Box::pin(authority::upstream_revoke(g)),
    ),
    command("upstreamauthority taint", "Marks an upstream X.509 authority as tainted", &[SERVER, OUTPUT, authority::UPSTREAM], |g| {
        Box::pin(authority::upstream_taint(g))
    }),
    Command { manner: run::INVALID, ..command("validate", "Checks a configuration file", &[run::FLAGS], |g| Box::pin(run::validate(g))) },
    command("x509 mint", "Mints an X509-SVID", &[SERVER, OUTPUT, mint::X509], |g| Box::pin(mint::x509(g))),
];

/// What a feature flag in the environment adds.
const WIT: Command = command("wit mint", "Mints a WIT-SVID", &[SERVER, OUTPUT, mint::WIT], |g| Box::pin(mint::wit(g)));
const WIT_FLAG: &str = "wit-svid";

/// The commands, with these feature flags (words with spaces between them).
pub(super) fn commands(feature_flags: &str) -> Vec<&'static Command> {
    let wit = feature_flags.split(' ').any(|f| f == WIT_FLAG).then_some(&WIT);
    COMMANDS.iter().chain(wit).collect()
}

/// A SPIFFE ID, refused in the words that SPIRE's library has for it.
fn spiffe_id(text: &str) -> Result<SpiffeId, Failure> {
    SpiffeId::parse(text).map_err(|e| Failure::new(id_error(&e)))
}

fn id_error(error: &IdError) -> String {
    let said = match error {
        IdError::Empty => "cannot be empty",
        IdError::Scheme => "scheme is missing or invalid",
        IdError::TrustDomainMissing => "trust domain is missing",
        IdError::TrustDomainCharacter(_) => {
            "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores"
        }
        IdError::PathStart => "path must have a leading slash",
        IdError::EmptySegment => "path cannot contain empty segments",
        IdError::TrailingSlash => "path cannot have a trailing slash",
        IdError::DotSegment => "path cannot contain dot segments",
        IdError::PathCharacter(_) => "path segment characters are limited to letters, numbers, dots, dashes, and underscores",
        IdError::TooLong { .. } | IdError::PathMissing => return error.to_string(),
    };
    said.to_owned()
}

fn wire_id(text: &str) -> Result<types::Spiffeid, Failure> {
    Ok(id::to_wire(&spiffe_id(text)?))
}

/// `type:value`; the server decides whether it can be used.
fn selector(text: &str) -> Result<types::Selector, Failure> {
    let (kind, value) = text.split_once(':').ok_or_else(|| Failure::new(format!("selector \"{text}\" must be formatted as type:value")))?;
    Ok(types::Selector { r#type: kind.to_owned(), value: value.to_owned() })
}

/// A number that has to fit a 32-bit field of the API.
fn narrow(number: i64, what: &str) -> Result<i32, Failure> {
    i32::try_from(number).map_err(|_| Failure::new(format!("invalid value for {what}: overflow converting int({number}) to int32")))
}

/// Whole seconds of a length of time, rounded up.
fn seconds(nanos: i64, what: &str) -> Result<i32, Failure> {
    const SECOND: i64 = 1_000_000_000;
    // Go divides towards zero.
    narrow(nanos.saturating_add(SECOND - 1) / SECOND, what)
}

/// Prefixes an error.
fn within(before: &str) -> impl Fn(Failure) -> Failure {
    move |failure| Failure::new(format!("{before}: {failure}"))
}

/// The content of a file, or of standard input.
fn read(path: Option<&str>) -> Result<Vec<u8>, Failure> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    // One more than there may be, so that what is too long is refused and not cut.
    let limit = INPUT_BYTES_MAX + 1;
    let (about, result) = match path {
        Some(path) => (format!("open {path}: "), std::fs::File::open(path).and_then(|f| f.take(limit).read_to_end(&mut bytes))),
        None => (String::new(), std::io::stdin().take(limit).read_to_end(&mut bytes)),
    };
    match result {
        Ok(length) if length as u64 > INPUT_BYTES_MAX => {
            Err(Failure::new(format!("{about}it has more than the {INPUT_BYTES_MAX} bytes allowed")))
        }
        Ok(_) => Ok(bytes),
        Err(error) => Err(Failure::new(format!("{about}{}", go::system_error(&error.to_string())))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_to_its_last_byte_or_refused_and_never_cut() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().display().to_string();
        file.as_file().set_len(INPUT_BYTES_MAX).expect("long");
        assert_eq!(read(Some(&path)).expect("read").len() as u64, INPUT_BYTES_MAX);
        file.as_file().set_len(INPUT_BYTES_MAX + 1).expect("longer");
        let refused = read(Some(&path)).expect_err("refused").to_string();
        assert_eq!(refused, format!("open {path}: it has more than the {INPUT_BYTES_MAX} bytes allowed"));
    }
}
