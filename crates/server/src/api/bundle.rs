//! The own trust domain's bundle, and bundles of foreign trust domains.

use std::sync::Arc;

use countersign_identity::{Bundle, Entry, TrustDomain};
use countersign_store::{Change, Draft};
use countersign_wire::bundle_api::batch_delete_federated_bundle_request::Mode;
use countersign_wire::bundle_api::{self, bundle_server};
use countersign_wire::{bundle, mask, types};
use tonic::{Request, Response, Status};

use super::access::About;
use super::{Api, filter, polled, status};
use crate::policy::Caller;

/// Most bundles in one batch.
const BATCH_MAX: usize = 1000;

#[tonic::async_trait]
impl bundle_server::Bundle for Api {
    async fn count_bundles(
        &self,
        _: Request<bundle_api::CountBundlesRequest>,
    ) -> Result<Response<bundle_api::CountBundlesResponse>, Status> {
        let count = self.store.snapshot().bundles().iter().count();
        Ok(Response::new(bundle_api::CountBundlesResponse { count: i32::try_from(count).unwrap_or(i32::MAX) }))
    }

    async fn get_bundle(&self, _: Request<bundle_api::GetBundleRequest>) -> Result<Response<types::Bundle>, Status> {
        Err(polled::elsewhere())
    }

    async fn append_bundle(&self, request: Request<bundle_api::AppendBundleRequest>) -> Result<Response<types::Bundle>, Status> {
        let caller = Self::caller(&request)?;
        let request = request.into_inner();
        caller.access.about(|| About::trust_domain(self.trust_domain.name()));
        if request.x509_authorities.is_empty() && request.jwt_authorities.is_empty() {
            return Err(status::invalid_plain(&caller, "no authorities to append"));
        }
        let mut added = Bundle::empty(self.trust_domain.clone());
        bundle::add_authorities(&mut added, &request.x509_authorities, &request.jwt_authorities)
            .map_err(|e| status::invalid_plain(&caller, &e.to_string()))?;
        let trust_domain = self.trust_domain.clone();
        let appended = self
            .store
            .write(caller.actor(), move |draft| {
                let known = draft.snapshot().bundle(trust_domain.name()).map(|b| Bundle::clone(b));
                let Some(mut own) = known else { return Ok(Err(Status::not_found("bundle not found"))) };
                let before = own.clone();
                for authority in added.x509_authorities() {
                    if let Err(e) = own.add_x509_authority(authority.certificate.clone(), authority.tainted) {
                        return Ok(Err(Status::resource_exhausted(e.to_string())));
                    }
                }
                for authority in added.jwt_authorities() {
                    if let Err(e) = own.add_jwt_authority(authority.clone()) {
                        return Ok(Err(Status::resource_exhausted(e.to_string())));
                    }
                }
                if !own.same_content(&before) {
                    own.sequence_number += 1;
                    draft.change(Change::BundlePut(Arc::new(own.clone())));
                }
                Ok(Ok(own))
            })
            .await
            .map_err(|e| status::store(&e))??;
        Ok(Response::new(mask::bundle(bundle::to_wire(&appended), request.output_mask.as_ref())))
    }

    async fn publish_jwt_authority(
        &self,
        _: Request<bundle_api::PublishJwtAuthorityRequest>,
    ) -> Result<Response<bundle_api::PublishJwtAuthorityResponse>, Status> {
        Err(Status::unimplemented("publishing authorities of nested servers is not implemented by this Countersign server"))
    }

    async fn publish_wit_authority(
        &self,
        _: Request<bundle_api::PublishWitAuthorityRequest>,
    ) -> Result<Response<bundle_api::PublishWitAuthorityResponse>, Status> {
        Err(Status::unimplemented("publishing authorities of nested servers is not implemented by this Countersign server"))
    }

    async fn list_federated_bundles(
        &self,
        request: Request<bundle_api::ListFederatedBundlesRequest>,
    ) -> Result<Response<bundle_api::ListFederatedBundlesResponse>, Status> {
        let request = request.into_inner();
        let snapshot = self.store.snapshot();
        let foreign = snapshot
            .bundles()
            .iter()
            .filter(|b| b.trust_domain() != &self.trust_domain && b.trust_domain().name() > request.page_token.as_str());
        let show = |found: &Arc<Bundle>| mask::bundle(bundle::to_wire(found), request.output_mask.as_ref());
        let (bundles, next_page_token) = filter::page(foreign, request.page_size, |b| b.trust_domain().name().to_owned(), show)?;
        Ok(Response::new(bundle_api::ListFederatedBundlesResponse { bundles, next_page_token }))
    }

    async fn get_federated_bundle(
        &self,
        request: Request<bundle_api::GetFederatedBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let caller = Self::caller(&request)?;
        let request = request.into_inner();
        caller.access.about(|| About::trust_domain(&request.trust_domain));
        let own = "getting a federated bundle for the server's own trust domain is not allowed";
        let trust_domain = self.foreign(&request.trust_domain, own).map_err(|e| status::invalid_plain(&caller, &e))?;
        let snapshot = self.store.snapshot();
        let found = snapshot.bundle(trust_domain.name()).ok_or_else(|| Status::not_found("bundle not found"))?;
        Ok(Response::new(mask::bundle(bundle::to_wire(found), request.output_mask.as_ref())))
    }

    async fn batch_create_federated_bundle(
        &self,
        request: Request<bundle_api::BatchCreateFederatedBundleRequest>,
    ) -> Result<Response<bundle_api::BatchCreateFederatedBundleResponse>, Status> {
        let caller = Self::caller(&request)?;
        let request = request.into_inner();
        let outcomes = self.put_all(&caller, request.bundle, Put::Create, None).await?;
        let results = outcomes
            .into_iter()
            .map(|(about, outcome)| {
                let (status, bundle) = shown(outcome, request.output_mask.as_ref());
                caller.access.item(status.as_ref(), || about);
                bundle_api::batch_create_federated_bundle_response::Result { status, bundle }
            })
            .collect();
        Ok(Response::new(bundle_api::BatchCreateFederatedBundleResponse { results }))
    }

    async fn batch_update_federated_bundle(
        &self,
        request: Request<bundle_api::BatchUpdateFederatedBundleRequest>,
    ) -> Result<Response<bundle_api::BatchUpdateFederatedBundleResponse>, Status> {
        let caller = Self::caller(&request)?;
        let request = request.into_inner();
        let outcomes = self.put_all(&caller, request.bundle, Put::Update, request.input_mask).await?;
        let results = outcomes
            .into_iter()
            .map(|(about, outcome)| {
                let (status, bundle) = shown(outcome, request.output_mask.as_ref());
                caller.access.item(status.as_ref(), || about);
                bundle_api::batch_update_federated_bundle_response::Result { status, bundle }
            })
            .collect();
        Ok(Response::new(bundle_api::BatchUpdateFederatedBundleResponse { results }))
    }

    async fn batch_set_federated_bundle(
        &self,
        request: Request<bundle_api::BatchSetFederatedBundleRequest>,
    ) -> Result<Response<bundle_api::BatchSetFederatedBundleResponse>, Status> {
        let caller = Self::caller(&request)?;
        let request = request.into_inner();
        let outcomes = self.put_all(&caller, request.bundle, Put::Set, None).await?;
        let results = outcomes
            .into_iter()
            .map(|(about, outcome)| {
                let (status, bundle) = shown(outcome, request.output_mask.as_ref());
                caller.access.item(status.as_ref(), || about);
                bundle_api::batch_set_federated_bundle_response::Result { status, bundle }
            })
            .collect();
        Ok(Response::new(bundle_api::BatchSetFederatedBundleResponse { results }))
    }

    async fn batch_delete_federated_bundle(
        &self,
        request: Request<bundle_api::BatchDeleteFederatedBundleRequest>,
    ) -> Result<Response<bundle_api::BatchDeleteFederatedBundleResponse>, Status> {
        let caller = Self::caller(&request)?;
        let request = request.into_inner();
        limit(&caller, request.trust_domains.len())?;
        let mode =
            Mode::try_from(request.mode).map_err(|_| status::invalid_plain(&caller, &format!("unhandled delete mode {}", request.mode)))?;
        let own = "removing the bundle for the server trust domain is not allowed";
        let wanted: Vec<Result<TrustDomain, Status>> =
            request.trust_domains.iter().map(|name| self.foreign(name, own).map_err(Status::invalid_argument)).collect();
        let outcomes = self
            .store
            .write(caller.actor(), move |draft| {
                Ok(wanted.iter().map(|w| w.clone().and_then(|td| delete(draft, &td, mode))).collect::<Vec<_>>())
            })
            .await
            .map_err(|e| status::store(&e))?;
        let results = request
            .trust_domains
            .into_iter()
            .zip(outcomes)
            .map(|(trust_domain, outcome)| {
                let status = outcome.map_or_else(|e| status::of(&e), |()| status::ok());
                let about = || About { mode: Some(word(mode)), ..About::trust_domain(&trust_domain) };
                caller.access.item(status.as_ref(), || Some(about()));
                bundle_api::batch_delete_federated_bundle_response::Result { status, trust_domain }
            })
            .collect();
        Ok(Response::new(bundle_api::BatchDeleteFederatedBundleResponse { results }))
    }
}

/// How a bundle is put.
#[derive(Clone, Copy)]
pub(super) enum Put {
    Create,
    Update,
    Set,
}

impl Put {
    /// What SPIRE says where this is asked for the own bundle.
    const fn own(self) -> &'static str {
        match self {
            Self::Create => "creating a federated bundle for the server's own trust domain is not allowed",
            Self::Update => "updating a federated bundle for the server's own trust domain is not allowed",
            Self::Set => "setting a federated bundle for the server's own trust domain is not allowed",
        }
    }
}

fn limit(caller: &Caller, count: usize) -> Result<(), Status> {
    if count > BATCH_MAX {
        return Err(status::invalid_plain(caller, &format!("the batch has {count} items, at most {BATCH_MAX} are allowed")));
    }
    Ok(())
}

/// SPIRE's word for a mode of deletion.
const fn word(mode: Mode) -> &'static str {
    match mode {
        Mode::Restrict => "RESTRICT",
        Mode::Delete => "DELETE",
        Mode::Dissociate => "DISSOCIATE",
    }
}

fn shown(outcome: Result<Arc<Bundle>, Status>, mask: Option<&types::BundleMask>) -> (Option<types::Status>, Option<types::Bundle>) {
    match outcome {
        Ok(found) => (status::ok(), Some(mask::bundle(bundle::to_wire(&found), mask))),
        Err(refusal) => (status::of(&refusal), None),
    }
}

impl Api {
    /// The trust domain of this name, which is not the own one: that is refused with `own`.
    fn foreign(&self, name: &str, own: &str) -> Result<TrustDomain, String> {
        let trust_domain = TrustDomain::parse_name_or_id(name).map_err(|e| format!("trust domain argument is not valid: {e}"))?;
        if trust_domain == self.trust_domain {
            return Err(own.to_owned());
        }
        Ok(trust_domain)
    }

    async fn put_all(
        &self,
        caller: &Caller,
        bundles: Vec<types::Bundle>,
        how: Put,
        input_mask: Option<types::BundleMask>,
    ) -> Result<Vec<(Option<About>, Result<Arc<Bundle>, Status>)>, Status> {
        limit(caller, bundles.len())?;
        let mut abouts = caller.access.each(&bundles, |bundle| About::trust_domain(&bundle.trust_domain));
        let wanted: Vec<Result<Bundle, Status>> = bundles
            .iter()
            .map(|b| {
                self.foreign(&b.trust_domain, how.own()).map_err(Status::invalid_argument)?;
                bundle::from_wire(b).map_err(|e| Status::invalid_argument(format!("failed to convert bundle: {e}")))
            })
            .collect();
        let outcomes = self
            .store
            .write(caller.actor(), move |draft| {
                Ok(wanted.iter().map(|w| w.clone().and_then(|b| put(draft, b, how, input_mask.as_ref()))).collect::<Vec<_>>())
            })
            .await
            .map_err(|e| status::store(&e))?;
        Ok(outcomes.into_iter().map(|outcome| (abouts.next(), outcome)).collect())
    }
}

/// Puts the bundle of a foreign trust domain.
pub(super) fn put(draft: &mut Draft<'_>, wanted: Bundle, how: Put, input_mask: Option<&types::BundleMask>) -> Result<Arc<Bundle>, Status> {
    let known = draft.snapshot().bundle(wanted.trust_domain().name()).map(Arc::clone);
    // Of the document as it came: a mask may leave its number out and take its keys all the same.
    let sequence_number = wanted.sequence_number;
    let merged = match (how, &known) {
        (Put::Create, Some(_)) => return Err(Status::already_exists("bundle already exists")),
        (Put::Update, None) => return Err(Status::not_found("bundle not found")),
        (Put::Update, Some(known)) => merge(known, wanted, input_mask),
        _ => wanted,
    };
    // A document of a foreign trust domain that is older than the one held would bring revoked keys back,
    // whichever call brings it. To go back on purpose, delete the bundle first.
    if let (Put::Set | Put::Update, Some(known)) = (how, &known)
        && sequence_number != 0
        && sequence_number < known.sequence_number
    {
        let text = format!("bundle has sequence number {sequence_number}, older than {} which is held", known.sequence_number);
        return Err(Status::failed_precondition(text));
    }
    let merged = Arc::new(merged);
    if known.as_deref() != Some(&*merged) {
        draft.change(Change::BundlePut(Arc::clone(&merged)));
    }
    Ok(merged)
}

/// Takes from `new` what the mask names and the rest from `known`.
fn merge(known: &Bundle, new: Bundle, mask: Option<&types::BundleMask>) -> Bundle {
    let Some(mask) = mask else { return new };
    let mut merged = known.clone();
    // Replacing cannot overflow: both bundles are within the limit of authorities.
    if mask.x509_authorities {
        merged.clear_x509_authorities();
        for authority in new.x509_authorities() {
            let _ = merged.add_x509_authority(authority.certificate.clone(), authority.tainted);
        }
    }
    if mask.jwt_authorities {
        merged.clear_jwt_authorities();
        for authority in new.jwt_authorities() {
            let _ = merged.add_jwt_authority(authority.clone());
        }
    }
    if mask.refresh_hint {
        merged.refresh_hint = new.refresh_hint;
    }
    if mask.sequence_number {
        merged.sequence_number = new.sequence_number;
    }
    merged
}

fn delete(draft: &mut Draft<'_>, trust_domain: &TrustDomain, mode: Mode) -> Result<(), Status> {
    if draft.snapshot().bundle(trust_domain.name()).is_none() {
        return Err(Status::not_found("failed to delete federated bundle: bundle not found"));
    }
    let users: Vec<Arc<Entry>> = draft.snapshot().entries_federating(trust_domain.name()).map(Arc::clone).collect();
    match mode {
        Mode::Restrict if !users.is_empty() => {
            let text =
                format!("failed to delete federated bundle: cannot delete bundle; federated with {} registration entries", users.len());
            return Err(Status::failed_precondition(text));
        }
        Mode::Restrict => {}
        Mode::Delete => {
            for entry in users {
                draft.change(Change::EntryDelete(entry.id.as_str().into()));
            }
        }
        Mode::Dissociate => {
            for entry in users {
                let mut alone = Entry::clone(&entry);
                alone.federates_with.retain(|td| td != trust_domain);
                alone.revision_number += 1;
                draft.change(Change::EntryPut(Arc::new(alone)));
            }
        }
    }
    draft.change(Change::BundleDelete(trust_domain.name().into()));
    Ok(())
}
