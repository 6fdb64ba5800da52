//! Each bundle speaks for its own trust domain alone: a federated authority could otherwise be anybody here.

use std::collections::HashMap;

use rustls::version::TLS13;

use super::language::LANGUAGES;
use super::program::Program;
use super::resumption::{client, ping};
use super::workload_api::{Authority, Fake, State};

#[test]
fn a_federated_authority_vouches_for_nobody_of_the_own_trust_domain_in_any_language() {
    let (own, foreign) = (Authority::new(), Authority::new());
    nobody_is_deceived(&own, &foreign, &own.state("/web"), foreign.state("/web"));
}

/// The chain is valid by the foreign authority. A program that looks for the issuers itself, by their names, finds the
/// forged certificate first, and behind it the own authority.
#[test]
fn a_chain_that_only_names_the_own_authority_deceives_nobody_in_any_language() {
    let (own, foreign) = (Authority::new(), Authority::new());
    let (below_own, below_foreign) = (own.intermediate(), foreign.intermediate());
    let welcome = with_chain(below_own.state("/web"), &[below_own.certificate()]);
    let chain = [below_foreign.as_if_signed_by(&own), below_foreign.certificate()];
    nobody_is_deceived(&own, &foreign, &welcome, with_chain(below_foreign.state("/web"), &chain));
}

fn with_chain(mut state: State, chain: &[Vec<u8>]) -> State {
    state.x509_svids.svids[0].x509_svid.extend(chain.concat());
    state
}

/// Programs of every language that trust both authorities, and have the impostor as client and as server.
fn nobody_is_deceived(own: &Authority, foreign: &Authority, welcome: &State, mut impostor: State) {
    let mut state = own.state("/web");
    state.x509_svids.federated_bundles = HashMap::from([("spiffe://other.test".to_owned(), foreign.certificate())]);
    let api = Fake::start(state);
    // It trusts the own authority, so that only we refuse.
    impostor.x509_svids.svids[0].bundle = own.certificate();
    let impostors = Fake::start(impostor.clone());
    let serve = ["serve", "spiffe://example.org/web"];
    let mut server_of_impostor = Program::start(&LANGUAGES[0], &impostors.socket(), &serve);
    let port_of_impostor = server_of_impostor.line()["listening"].clone();
    for language in LANGUAGES {
        let mut server = Program::start(language, &api.socket(), &serve);
        let port = u16::try_from(server.line()["listening"].as_u64().unwrap()).unwrap();
        assert!(ping(&client(&impostor, &TLS13), port).is_err(), "{}", language.name);
        let refused = server.line();
        assert!(refused["refused"].is_string(), "{}: {refused}", language.name);
        // The same SPIFFE ID by the own authority is welcome.
        ping(&client(welcome, &TLS13), port).unwrap_or_else(|e| panic!("{}: {e}", language.name));

        let mut connecting = Program::start(language, &api.socket(), &["connect"]);
        let opened = connecting.ask(&format!("open a {port_of_impostor} spiffe://example.org/web"));
        assert_eq!(opened["failed"], "a", "{}: {opened}", language.name);
    }
}
