//! Federation relationships: which other trust domains this one knows and where their bundles are to be had. Nothing is
//! fetched from there yet; a bundle comes with the relationship or by `bundle set`.

use std::sync::Arc;

use countersign_identity::{Bundle, FederationRelationship, TrustDomain};
use countersign_store::{Change, Draft, Snapshot};
use countersign_wire::trust_domain::batch_update_federation_relationship_response as updated;
use countersign_wire::trust_domain::{self, batch_create_federation_relationship_response as created, trust_domain_server};
use countersign_wire::trust_domain::{BatchDeleteFederationRelationshipResponse, batch_delete_federation_relationship_response as deleted};
use countersign_wire::{federation, mask, types};
use tonic::{Request, Response, Status};

use super::access::About;
use super::bundle::{Put, put};
use super::room::{REFUSAL_BYTES, Room};
use super::{Api, filter, status};
use crate::policy::Caller;

/// SPIRE's words, with its INTERNAL: clients of both see the same.
const NOTHING_TO_UPDATE: &str = "failed to update federation relationship: unable to fetch federation relationship: record not found";
/// Most relationships in one batch.
const BATCH_MAX: usize = 1000;

/// A relationship as a client wants it, and the bundle that came with it.
type Wanted = Result<(Arc<FederationRelationship>, Option<Bundle>), Status>;

#[tonic::async_trait]
impl trust_domain_server::TrustDomain for Api {
    async fn list_federation_relationships(
        &self,
        request: Request<trust_domain::ListFederationRelationshipsRequest>,
    ) -> Result<Response<trust_domain::ListFederationRelationshipsResponse>, Status> {
        let request = request.into_inner();
        let snapshot = self.store.snapshot();
        // Without pages there is no place to begin at, as in SPIRE.
        let after = if request.page_size > 0 { request.page_token.as_str() } else { "" };
        let show =
            |found: &Arc<FederationRelationship>| mask::federation_relationship(to_wire(&snapshot, found), request.output_mask.as_ref());
        let (federation_relationships, next_page_token) = filter::page(
            snapshot.federation_relationships_after(after),
            request.page_size,
            |found| found.trust_domain.name().to_owned(),
            show,
        )?;
        Ok(Response::new(trust_domain::ListFederationRelationshipsResponse { federation_relationships, next_page_token }))
    }

    async fn get_federation_relationship(
        &self,
        request: Request<trust_domain::GetFederationRelationshipRequest>,
    ) -> Result<Response<types::FederationRelationship>, Status> {
        let caller = Self::caller(&request)?;
        let request = request.into_inner();
        caller.access.about(|| About::trust_domain(&request.trust_domain));
        let trust_domain = parse(&caller, &request.trust_domain)?;
        let snapshot = self.store.snapshot();
        let found = snapshot
            .federation_relationship(trust_domain.name())
            .ok_or_else(|| Status::not_found("federation relationship does not exist"))?;
        Ok(Response::new(mask::federation_relationship(to_wire(&snapshot, found), request.output_mask.as_ref())))
    }

    async fn batch_create_federation_relationship(
        &self,
        request: Request<trust_domain::BatchCreateFederationRelationshipRequest>,
    ) -> Result<Response<trust_domain::BatchCreateFederationRelationshipResponse>, Status> {
        let caller = Self::caller(&request)?;
        let request = request.into_inner();
        let own = self.trust_domain.clone();
        let outcomes = self
            .decide_each(&caller, request.federation_relationships, move |draft, wanted, room| {
                create(draft, wanted, &own, request.output_mask.as_ref(), room)
            })
            .await?;
        let results = outcomes.into_iter().map(|(status, federation_relationship)| created::Result { status, federation_relationship });
        Ok(Response::new(trust_domain::BatchCreateFederationRelationshipResponse { results: results.collect() }))
    }

    async fn batch_update_federation_relationship(
        &self,
        request: Request<trust_domain::BatchUpdateFederationRelationshipRequest>,
    ) -> Result<Response<trust_domain::BatchUpdateFederationRelationshipResponse>, Status> {
        let caller = Self::caller(&request)?;
        let request = request.into_inner();
        let (input, output) = (request.input_mask.unwrap_or(ALL), request.output_mask);
        let outcomes = self
            .decide_each(&caller, request.federation_relationships, move |draft, wanted, room| {
                update(draft, wanted, input, output.as_ref(), room)
            })
            .await?;
        let results = outcomes.into_iter().map(|(status, federation_relationship)| updated::Result { status, federation_relationship });
        Ok(Response::new(trust_domain::BatchUpdateFederationRelationshipResponse { results: results.collect() }))
    }

    async fn batch_delete_federation_relationship(
        &self,
        request: Request<trust_domain::BatchDeleteFederationRelationshipRequest>,
    ) -> Result<Response<BatchDeleteFederationRelationshipResponse>, Status> {
        let caller = Self::caller(&request)?;
        let names = request.into_inner().trust_domains;
        limit(&caller, names.len())?;
        let wanted: Vec<Result<TrustDomain, Status>> = names
            .iter()
            .map(|name| if name.is_empty() { Err(status::invalid_plain(&caller, "missing trust domain")) } else { parse(&caller, name) })
            .collect();
        // Named as SPIRE names them: by what was parsed, or else by what was sent.
        let shown: Vec<String> =
            names.into_iter().zip(&wanted).map(|(sent, wanted)| wanted.as_ref().map_or(sent, |td| td.name().to_owned())).collect();
        let outcomes = self
            .store
            .write(caller.actor(), move |draft| {
                Ok(wanted.iter().map(|wanted| wanted.clone().and_then(|td| delete(draft, &td))).collect::<Vec<_>>())
            })
            .await
            .map_err(|e| status::store(&e))?;
        let results = shown.into_iter().zip(outcomes).map(|(trust_domain, outcome)| {
            let status = outcome.map_or_else(|refusal| status::of(&refusal), |()| status::ok());
            caller.access.item(status.as_ref(), || Some(About::trust_domain(&trust_domain)));
            deleted::Result { status, trust_domain }
        });
        Ok(Response::new(BatchDeleteFederationRelationshipResponse { results: results.collect() }))
    }

    async fn refresh_bundle(&self, request: Request<trust_domain::RefreshBundleRequest>) -> Result<Response<()>, Status> {
        let caller = Self::caller(&request)?;
        let request = request.into_inner();
        caller.access.about(|| About::trust_domain(&request.trust_domain));
        let trust_domain = parse(&caller, &request.trust_domain)?;
        let is_known = self.federates_with.iter().any(|configured| configured.trust_domain == trust_domain)
            || self.store.snapshot().federation_relationship(trust_domain.name()).is_some();
        if !is_known {
            return Err(Status::not_found(format!("no relationship with trust domain {:?}", trust_domain.name())));
        }
        Err(Status::unimplemented(
            "failed to refresh bundle: fetching bundles of other trust domains is not implemented by this Countersign server; set them with `bundle set`",
        ))
    }
}

/// Every field of a relationship.
const ALL: types::FederationRelationshipMask =
    types::FederationRelationshipMask { bundle_endpoint_url: true, bundle_endpoint_profile: true, trust_domain_bundle: true };

fn parse(caller: &Caller, name: &str) -> Result<TrustDomain, Status> {
    TrustDomain::parse_name_or_id(name).map_err(|e| status::invalid(caller, "failed to parse trust domain", e))
}

fn limit(caller: &Caller, count: usize) -> Result<(), Status> {
    if count > BATCH_MAX {
        return Err(status::invalid_plain(caller, &format!("the batch has {count} items, at most {BATCH_MAX} are allowed")));
    }
    Ok(())
}

fn to_wire(snapshot: &Snapshot, found: &FederationRelationship) -> types::FederationRelationship {
    federation::to_wire(found, snapshot.bundle(found.trust_domain.name()).map(Arc::as_ref))
}

/// What became of one item: its status, and the relationship as it is shown.
type Outcome = (Option<types::Status>, Option<types::FederationRelationship>);

impl Api {
    /// Decides the items of a batch one after the other, in one transaction.
    async fn decide_each(
        &self,
        caller: &Caller,
        relationships: Vec<types::FederationRelationship>,
        decide: impl Fn(
            &mut Draft<'_>,
            &(Arc<FederationRelationship>, Option<Bundle>),
            &mut Answer,
        ) -> Result<types::FederationRelationship, Status>
        + Send
        + 'static,
    ) -> Result<Vec<Outcome>, Status> {
        limit(caller, relationships.len())?;
        let convert = |wire| match federation::from_wire(wire) {
            Ok((relationship, bundle)) => Ok((Arc::new(relationship), bundle)),
            Err(e) => Err(status::invalid(caller, "failed to convert federation relationship", e)),
        };
        let wanted: Vec<Wanted> = relationships.iter().map(convert).collect();
        let outcomes = self
            .store
            .write(caller.actor(), move |draft| {
                let mut answer = Answer { room: Room::default(), to_come: wanted.len() };
                let one = |wanted: &Wanted| {
                    answer.to_come = answer.to_come.saturating_sub(1);
                    let outcome = wanted.as_ref().map_err(Status::clone).and_then(|wanted| decide(draft, wanted, &mut answer));
                    if let Err(refusal) = &outcome {
                        answer.room.take(&created::Result { status: status::of(refusal), federation_relationship: None });
                    }
                    outcome
                };
                Ok(wanted.iter().map(one).collect::<Vec<_>>())
            })
            .await
            .map_err(|e| status::store(&e))?;
        let shown = relationships.iter().zip(outcomes).map(|(sent, outcome)| {
            let (status, shown) = match outcome {
                Ok(shown) => (status::ok(), Some(shown)),
                Err(refusal) => (status::of(&refusal), None),
            };
            caller.access.item(status.as_ref(), || Some(About::relationship(sent)));
            (status, shown)
        });
        Ok(shown.collect())
    }
}

/// The answer to a batch, which repeats its items with their bundles and must not be larger than the caller can receive.
struct Answer {
    room: Room,
    to_come: usize,
}

impl Answer {
    /// The relationship as it is shown; or a refusal of this item, before anything is done that the caller would not hear of.
    fn of(
        &mut self,
        shown: types::FederationRelationship,
        mask: Option<&types::FederationRelationshipMask>,
    ) -> Result<types::FederationRelationship, Status> {
        let shown = mask::federation_relationship(shown, mask);
        let result = created::Result { status: status::ok(), federation_relationship: Some(shown) };
        if !self.room.takes_leaving(&result, self.to_come * REFUSAL_BYTES) {
            return Err(Status::resource_exhausted("the answer has no room for this relationship; send it in a smaller batch"));
        }
        Ok(result.federation_relationship.unwrap_or_default())
    }
}

fn create(
    draft: &mut Draft<'_>,
    (wanted, bundle): &(Arc<FederationRelationship>, Option<Bundle>),
    own: &TrustDomain,
    mask: Option<&types::FederationRelationshipMask>,
    answer: &mut Answer,
) -> Result<types::FederationRelationship, Status> {
    if wanted.trust_domain == *own {
        return Err(Status::invalid_argument("unable to create federation relationship for server trust domain"));
    }
    // INTERNAL, as in SPIRE, where it is the database's complaint, in the words of whichever database that is.
    if draft.snapshot().federation_relationship(wanted.trust_domain.name()).is_some() {
        return Err(Status::internal("failed to create federation relationship: federation relationship already exists"));
    }
    let shown = answer.of(federation::to_wire(wanted, bundle.as_ref()), mask)?;
    if let Some(bundle) = bundle {
        put(draft, bundle.clone(), Put::Set, None).map_err(|e| because("failed to create federation relationship", &e))?;
    }
    draft.change(Change::FederationRelationshipPut(Arc::clone(wanted)));
    Ok(shown)
}

fn update(
    draft: &mut Draft<'_>,
    (wanted, bundle): &(Arc<FederationRelationship>, Option<Bundle>),
    input: types::FederationRelationshipMask,
    mask: Option<&types::FederationRelationshipMask>,
    answer: &mut Answer,
) -> Result<types::FederationRelationship, Status> {
    let name = wanted.trust_domain.name();
    let known = draft.snapshot().federation_relationship(name).map(Arc::clone).ok_or_else(|| Status::internal(NOTHING_TO_UPDATE))?;
    let mut merged = FederationRelationship::clone(&known);
    if input.bundle_endpoint_url {
        merged.bundle_endpoint_url = wanted.bundle_endpoint_url.clone();
    }
    if input.bundle_endpoint_profile {
        merged.bundle_endpoint_profile = wanted.bundle_endpoint_profile.clone();
    }
    let bundle = bundle.as_ref().filter(|_| input.trust_domain_bundle);
    let held = bundle.or_else(|| draft.snapshot().bundle(name).map(Arc::as_ref));
    let shown = answer.of(federation::to_wire(&merged, held), mask)?;
    if let Some(bundle) = bundle {
        put(draft, bundle.clone(), Put::Set, None).map_err(|e| because("failed to update federation relationship", &e))?;
    }
    if merged != *known {
        draft.change(Change::FederationRelationshipPut(Arc::new(merged)));
    }
    Ok(shown)
}

fn because(message: &str, cause: &Status) -> Status {
    Status::new(cause.code(), format!("{message}: {}", cause.message()))
}

fn delete(draft: &mut Draft<'_>, trust_domain: &TrustDomain) -> Result<(), Status> {
    if draft.snapshot().federation_relationship(trust_domain.name()).is_none() {
        return Err(Status::not_found("federation relationship not found"));
    }
    draft.change(Change::FederationRelationshipDelete(trust_domain.name().into()));
    Ok(())
}
