//! Each bundle speaks for its own trust domain alone: a federated authority could otherwise be anybody here.

use std::collections::HashMap;

use rustls::version::TLS13;

use super::language::LANGUAGES;
use super::program::Program;
use super::resumption::{client, ping};
use super::workload_api::{Authority, Fake};

#[test]
fn a_federated_authority_vouches_for_nobody_of_the_own_trust_domain_in_any_language() {
    let (own, foreign) = (Authority::new(), Authority::new());
    let mut state = own.state("/web");
    state.x509_svids.federated_bundles = HashMap::from([("spiffe://other.test".to_owned(), foreign.certificate())]);
    let api = Fake::start(state);
    // SPIFFE IDs of the own trust domain, signed by the other; it trusts the own authority, so that only we refuse.
    let mut impostor = foreign.state("/web");
    impostor.x509_svids.svids[0].bundle = own.certificate();
    let impostors = Fake::start(impostor);
    let serve = ["serve", "spiffe://example.org/web"];
    let mut server_of_impostor = Program::start(&LANGUAGES[0], &impostors.socket(), &serve);
    let port_of_impostor = server_of_impostor.line()["listening"].clone();
    for language in LANGUAGES {
        let mut server = Program::start(language, &api.socket(), &serve);
        let port = u16::try_from(server.line()["listening"].as_u64().unwrap()).unwrap();
        assert!(ping(&client(&foreign.state("/web"), &TLS13), port).is_err(), "{}", language.name);
        let refused = server.line();
        assert!(refused["refused"].is_string(), "{}: {refused}", language.name);
        // The same SPIFFE ID by the own authority is welcome.
        ping(&client(&own.state("/web"), &TLS13), port).unwrap_or_else(|e| panic!("{}: {e}", language.name));

        let mut connecting = Program::start(language, &api.socket(), &["connect"]);
        let opened = connecting.ask(&format!("open a {port_of_impostor} spiffe://example.org/web"));
        assert_eq!(opened["failed"], "a", "{}: {opened}", language.name);
    }
}
