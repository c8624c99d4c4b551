//! The hub's gRPC service: strings become types here, operations are called, answers become messages.

use std::collections::BTreeMap;
use std::sync::Arc;

use cas::VersionRef;
use cas::names::NameKind;
use cas::record::RecordKind;
use prost::Message as _;
use proto::convert::{InvalidField, attributes, optional, required};
use proto::hub::hub_server::Hub as Service;
use proto::hub::{self as api, resolve_response};
use proto::node as wire;
use tonic::{Request, Response, Status, Streaming};
use types::{Hash, NodeName, RequestId, ResourceName, VolumeId};

use crate::core::{Hub, candidates};
use crate::create::{Limit, NewVolume, Point, Source, create, with_name};
use crate::error::Error;
use crate::flight::Operation;
use crate::group::{NewGroup, seal_group};
use crate::liveness::Liveness;
use crate::placement::Budget;
use crate::records::Range;
use crate::seal::{NewSeal, seal};
use crate::settings::Attributes;
use crate::unique::{UniqueName, first, is_unique, living, request};
use crate::view::{self, head_version};
use crate::{attach, branch, bundle, ensure, order, settings};

/// What a list gives that asks for no size.
const PAGE: usize = 500;

/// The most that a list gives at once.
const LARGEST_PAGE: usize = 1000;

/// A page ends early at this many bytes: attributes can be large, and a message may not be.
const LARGEST_PAGE_BYTES: usize = proto::client::MAX_MESSAGE_BYTES * 3 / 4;

/// Serves one hub.
#[derive(Debug, Clone)]
pub struct HubService {
    hub: Arc<Hub>,
}

type Answer<T> = Result<Response<T>, Status>;

impl HubService {
    /// Serves `hub`.
    pub fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }

    async fn find(&self, text: &str) -> Result<VolumeId, Error> {
        self.hub.catalog.find(text).await
    }

    /// The request that a caller named, or that its unique name stands for.
    async fn request(&self, text: &str, kind: RecordKind, unique: &str) -> Result<RequestId, Error> {
        if unique.is_empty() {
            request_id(text)
        } else {
            request(&self.hub, &UniqueName::new(kind, unique)).await
        }
    }

    async fn make(&self, new: NewVolume) -> Result<api::Volume, Error> {
        match create(&self.hub, new).await? {
            (volume, Some(told)) => self.hub.describe_told(&volume, told).await,
            (volume, None) => self.hub.describe(&volume).await,
        }
    }

    async fn list(&self, request: api::ListVolumesRequest) -> Result<api::ListVolumesResponse, Error> {
        let size = page_size(request.page_size);
        let node: Option<NodeName> = optional("node", &request.node)?;
        if !request.page_token.is_empty() && request.page_token.parse::<VolumeId>().is_err() {
            return Err(Error::PageToken { token: request.page_token });
        }
        let kind = Some(request.kind).filter(|_| request.kind() != wire::RecordKind::Unspecified);
        let mut range = Range {
            after: request.page_token.clone(),
            kind,
            origin: request.origin_volume_id.clone(),
            limit: size + 1,
        };
        self.hub.catalog.begin_list(!request.page_token.is_empty()).await?;
        let mut volumes: Vec<api::Volume> = Vec::new();
        let mut bytes = 0;
        loop {
            let records = self.hub.catalog.range(range.clone()).await?;
            let more = records.len() == range.limit;
            if let Some((last, ..)) = records.last() {
                range.after = last.to_string();
            }
            for (id, stored, owner) in records {
                if !asked_for(&stored, &request) {
                    continue;
                }
                let volume = view::with_owner(stored, &self.hub.owner_seen(&id, owner));
                let volume = if request.brief { view::brief(volume) } else { volume };
                if node.as_ref().is_some_and(|node| volume.node != node.as_str()) {
                    continue;
                }
                bytes += volume.encoded_len();
                if volumes.len() == size || (bytes > LARGEST_PAGE_BYTES && !volumes.is_empty()) {
                    let next_page_token =
                        volumes.last().map_or_else(String::new, |last| last.volume_id.clone());
                    return Ok(api::ListVolumesResponse { volumes, next_page_token });
                }
                volumes.push(volume);
            }
            if !more {
                return Ok(api::ListVolumesResponse { volumes, next_page_token: String::new() });
            }
        }
    }

    async fn entries(&self, request: api::ListEntriesRequest) -> Result<api::ListEntriesResponse, Error> {
        let volume = self.find(&request.volume_id).await?;
        let record = self.hub.catalog.living(&volume).await?;
        let token = match request.page_token.as_str() {
            "" => None,
            text => {
                Some(view::timeline_token(text).ok_or_else(|| Error::PageToken { token: text.to_owned() })?)
            }
        };
        let size = page_size(request.page_size);
        let (entries, next) = view::timeline(&self.hub.store, &record, token, size).await?;
        Ok(api::ListEntriesResponse { entries, next_page_token: next.unwrap_or_default() })
    }

    async fn whereabouts(&self, request: api::ResolveRequest) -> Result<api::ResolveResponse, Error> {
        use resolve_response::State;
        let volume = self.find(&request.volume_id).await?;
        let hub = &self.hub;
        let record = hub.catalog.volume(&volume).await?;
        let mut answer = api::ResolveResponse {
            epoch: record.epoch.0,
            version: head_version(&record).map_or_else(String::new, |version| version.to_string()),
            ..api::ResolveResponse::default()
        };
        let owner = record.owner.map(|owner| (owner, hub.nodes.liveness(owner)));
        let name = || record.node.as_ref().map_or_else(String::new, ToString::to_string);
        let state = match (hub.flights.current(&volume), owner) {
            (Some((Operation::Move(_) | Operation::Ensure(_), Some(towards))), owner)
                if record.node.as_ref() != Some(&towards)
                    || owner.is_none_or(|(_, liveness)| liveness != Some(Liveness::Live)) =>
            {
                answer.node = towards.to_string();
                State::Restoring
            }
            (_, None | Some((_, Some(Liveness::Fenced)))) => State::Asleep,
            (_, Some((session, Some(Liveness::Live)))) => {
                if let Some(live) = hub.nodes.live_session(session) {
                    answer.address = live.introduction.address.clone();
                }
                answer.node = name();
                State::Cached
            }
            (_, Some((_, Some(Liveness::Suspect | Liveness::Dead) | None))) => {
                answer.node = name();
                State::OwnerUnreachable
            }
        };
        answer.set_state(state);
        Ok(answer)
    }

    async fn template(&self, name: &ResourceName) -> Result<api::Template, Error> {
        let record = crate::create::template(&self.hub, name).await?;
        let version = head_version(&record);
        let nodes = self.hub.nodes.holders(&record.id, version.as_ref());
        Ok(api::Template {
            name: name.to_string(),
            volume_id: record.id.to_string(),
            version: version.map_or_else(String::new, |version| version.to_string()),
            created: Some(proto::convert::timestamp(record.created)),
            nodes: nodes.iter().map(ToString::to_string).collect(),
        })
    }

    async fn templates(&self) -> Result<Vec<api::Template>, Error> {
        let mut templates = Vec::new();
        let names = cas::names::list(&self.hub.store, NameKind::Template).await?;
        for (name, _) in names.into_iter().filter(|(name, _)| !is_unique(name)) {
            match self.template(&name).await {
                Ok(template) => templates.push(template),
                // Deleted since the listing, or its name was left behind.
                Err(Error::NoTemplate { .. } | Error::NotMadeYet { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(templates)
    }

    async fn nodes(&self) -> Result<Vec<api::Node>, Error> {
        let owners = self.hub.state.owners(self.hub.nodes.never_heard()).await?;
        Ok(self.hub.nodes.describe(|session| owners.contains(&session)))
    }

    async fn status(&self) -> Result<api::HubStatus, Error> {
        let hub = &self.hub;
        let store = hub.store.objects().describe();
        let checks =
            vec![match cas::Store::open(Arc::clone(hub.store.objects()), Arc::clone(&hub.clock)).await {
                Ok(found) if found.id() == hub.store.id() => check("store", true, &store, ""),
                Ok(found) => check(
                    "store",
                    false,
                    &format!("{store} is the store {} now, not {}", found.id(), hub.store.id()),
                    "somebody replaced the bucket's contents: stop the nodes and look",
                ),
                Err(error) => check(
                    "store",
                    false,
                    &proto::status::message(&error),
                    "check the store's address and credentials; nodes keep what they have meanwhile",
                ),
            }];
        Ok(api::HubStatus {
            store_id: hub.store.id().to_string(),
            store,
            nodes_live: u32::try_from(hub.nodes.live().len()).unwrap_or(u32::MAX),
            volumes: hub.state.count(wire::RecordKind::Volume.into()).await?,
            checks,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }
}

#[tonic::async_trait]
impl Service for HubService {
    type AttachStream = attach::Answers;

    async fn attach(&self, request: Request<Streaming<api::AttachRequest>>) -> Answer<Self::AttachStream> {
        Ok(Response::new(attach::attach(&self.hub, request.into_inner())))
    }

    async fn create_volume(&self, request: Request<api::CreateVolumeRequest>) -> Answer<api::Volume> {
        let asked = request.into_inner();
        let template: Option<ResourceName> = optional("template", &asked.template)?;
        let name: Option<ResourceName> = optional("name", &asked.name)?;
        let (request, unique) = volume_request(&asked.request_id, &asked.unique_name)?;
        let new = NewVolume {
            request,
            unique,
            source: template.map_or(Source::Empty, Source::Template),
            required: optional("node", &asked.node)?,
            hint: optional("node_hint", &asked.node_hint)?,
            limit: asked.quota_bytes.map_or(Limit::Default, Limit::Asked),
            domain: optional("domain", &asked.domain)?,
            attributes: with_name(asked.attributes.into_iter().collect(), name.as_ref()),
        };
        Ok(Response::new(self.make(new).await?))
    }

    async fn fork_volume(&self, request: Request<api::ForkVolumeRequest>) -> Answer<api::Volume> {
        let asked = request.into_inner();
        let name: Option<ResourceName> = optional("name", &asked.name)?;
        let source = self.find(&asked.source_volume_id).await?;
        let (request, unique) = volume_request(&asked.request_id, &asked.unique_name)?;
        let new = NewVolume {
            request,
            unique,
            source: Source::Fork(source, point(&asked.entry_id, &asked.version)?),
            required: optional("node", &asked.node)?,
            hint: optional("node_hint", &asked.node_hint)?,
            limit: asked.quota_bytes.map_or(Limit::Default, Limit::Asked),
            domain: None,
            attributes: with_name(asked.attributes.into_iter().collect::<BTreeMap<_, _>>(), name.as_ref()),
        };
        Ok(Response::new(self.make(new).await?))
    }

    async fn delete_volume(
        &self,
        request: Request<api::DeleteVolumeRequest>,
    ) -> Answer<api::DeleteVolumeResponse> {
        let asked = request.into_inner();
        match self.find(&asked.volume_id).await {
            Ok(volume) => order::delete(&self.hub, &volume, attributes(asked.expected)).await?,
            // A name that nobody carries: it is gone.
            Err(Error::NoVolume { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Response::new(api::DeleteVolumeResponse {}))
    }

    async fn get_volume(&self, request: Request<api::GetVolumeRequest>) -> Answer<api::Volume> {
        let asked = request.into_inner();
        if !asked.unique_name.is_empty() {
            let name =
                UniqueName::new(view::record_kind(asked.kind(), RecordKind::Volume), &asked.unique_name);
            let record = living(&self.hub, &name).await?;
            let record = record.ok_or(Error::NoVolume { volume: asked.unique_name })?;
            let seen = self.hub.owner_asked(&record).await;
            return Ok(Response::new(view::volume(&record, &seen)));
        }
        let volume = if asked.id_only {
            required("volume_id", &asked.volume_id)?
        } else {
            self.find(&asked.volume_id).await?
        };
        Ok(Response::new(self.hub.describe(&volume).await?))
    }

    async fn list_volumes(
        &self,
        request: Request<api::ListVolumesRequest>,
    ) -> Answer<api::ListVolumesResponse> {
        Ok(Response::new(self.list(request.into_inner()).await?))
    }

    async fn snapshot_volume(&self, request: Request<api::SnapshotVolumeRequest>) -> Answer<api::Entry> {
        let asked = request.into_inner();
        let volume = self.find(&asked.volume_id).await?;
        Ok(Response::new(order::snapshot(&self.hub, &volume, asked.label).await?))
    }

    async fn list_entries(
        &self,
        request: Request<api::ListEntriesRequest>,
    ) -> Answer<api::ListEntriesResponse> {
        Ok(Response::new(self.entries(request.into_inner()).await?))
    }

    async fn restore_volume(
        &self,
        request: Request<api::RestoreVolumeRequest>,
    ) -> Answer<wire::RestoreVolumeResponse> {
        let asked = request.into_inner();
        let volume = self.find(&asked.volume_id).await?;
        let point = match point(&asked.entry_id, &asked.version)? {
            Point::Present => {
                return Err(Error::from(InvalidField::Missing { field: "entry_id" }).into());
            }
            point @ (Point::Entry(_) | Point::Version(_)) => point,
        };
        Ok(Response::new(order::restore(&self.hub, &volume, point).await?))
    }

    async fn trigger_sync(
        &self,
        request: Request<api::TriggerSyncRequest>,
    ) -> Answer<wire::SyncVolumeResponse> {
        let volume = self.find(&request.into_inner().volume_id).await?;
        Ok(Response::new(order::sync(&self.hub, &volume).await?))
    }

    async fn ensure_cached(
        &self,
        request: Request<api::EnsureCachedRequest>,
    ) -> Answer<api::EnsureCachedResponse> {
        let asked = request.into_inner();
        let budget = Budget { cpu_millis: asked.budget_cpu_millis, memory_bytes: asked.budget_memory_bytes };
        let candidates = candidates(&asked.candidates)?;
        let volume = self.find(&asked.volume_id).await?;
        Ok(Response::new(ensure::ensure(&self.hub, &volume, &candidates, budget).await?))
    }

    async fn move_volume(&self, request: Request<api::MoveVolumeRequest>) -> Answer<api::Volume> {
        let asked = request.into_inner();
        let node: NodeName = required("node", &asked.node)?;
        let volume = self.find(&asked.volume_id).await?;
        ensure::move_to(&self.hub, &volume, &node).await?;
        Ok(Response::new(self.hub.describe(&volume).await?))
    }

    async fn hibernate_volume(&self, request: Request<api::HibernateVolumeRequest>) -> Answer<api::Volume> {
        let volume = self.find(&request.into_inner().volume_id).await?;
        ensure::hibernate(&self.hub, &volume).await?;
        Ok(Response::new(self.hub.describe(&volume).await?))
    }

    async fn resolve(&self, request: Request<api::ResolveRequest>) -> Answer<api::ResolveResponse> {
        Ok(Response::new(self.whereabouts(request.into_inner()).await?))
    }

    async fn list_nodes(&self, _: Request<api::ListNodesRequest>) -> Answer<api::ListNodesResponse> {
        Ok(Response::new(api::ListNodesResponse { nodes: self.nodes().await? }))
    }

    async fn get_template(&self, request: Request<api::GetTemplateRequest>) -> Answer<api::Template> {
        let name = required("name", &request.into_inner().name)?;
        Ok(Response::new(self.template(&name).await?))
    }

    async fn list_templates(
        &self,
        _: Request<api::ListTemplatesRequest>,
    ) -> Answer<api::ListTemplatesResponse> {
        Ok(Response::new(api::ListTemplatesResponse { templates: self.templates().await? }))
    }

    async fn seal_volume(&self, request: Request<api::SealVolumeRequest>) -> Answer<api::Volume> {
        let asked = request.into_inner();
        let kind = view::record_kind(asked.kind(), RecordKind::Snapshot);
        if !kind.is_sealed() {
            let reason = format!("a {kind} is not sealed");
            return Err(Error::from(InvalidField::Malformed { field: "kind", reason }).into());
        }
        let new = NewSeal {
            source: self.find(&asked.volume_id).await?,
            version: None,
            request: self.request(&asked.request_id, kind, &asked.unique_name).await?,
            kind,
            attributes: asked.attributes.into_iter().collect(),
        };
        let sealed = seal(&self.hub, new).await?;
        Ok(Response::new(self.hub.describe(&sealed).await?))
    }

    async fn seal_group(&self, request: Request<api::SealGroupRequest>) -> Answer<api::SealGroupResponse> {
        let asked = request.into_inner();
        let kind = view::record_kind(asked.kind(), RecordKind::Snapshot);
        if asked.unique_name.is_empty() || !kind.is_sealed() {
            return Err(Error::from(InvalidField::Missing { field: "unique_name" }).into());
        }
        let mut volumes = Vec::with_capacity(asked.volume_ids.len());
        for volume in &asked.volume_ids {
            volumes.push(self.find(volume).await?);
        }
        let attributes = asked.attributes.into_iter().collect();
        let new = NewGroup { volumes, name: asked.unique_name, kind, attributes };
        let mut sealed = Vec::new();
        for id in seal_group(&self.hub, new).await? {
            sealed.push(self.hub.describe(&id).await?);
        }
        Ok(Response::new(api::SealGroupResponse { sealed }))
    }

    async fn set_branch(&self, request: Request<api::SetBranchRequest>) -> Answer<api::Entry> {
        let asked = request.into_inner();
        let volume = self.find(&asked.volume_id).await?;
        let point = point(&asked.entry_id, &asked.version)?;
        Ok(Response::new(branch::set(&self.hub, &volume, &asked.branch, point, asked.r#move).await?))
    }

    async fn delete_branch(
        &self,
        request: Request<api::DeleteBranchRequest>,
    ) -> Answer<api::DeleteBranchResponse> {
        let asked = request.into_inner();
        let volume = self.find(&asked.volume_id).await?;
        branch::delete(&self.hub, &volume, &asked.branch).await?;
        Ok(Response::new(api::DeleteBranchResponse {}))
    }

    async fn set_pin(&self, request: Request<api::SetPinRequest>) -> Answer<api::Entry> {
        let asked = request.into_inner();
        let volume = self.find(&asked.volume_id).await?;
        let point = point(&asked.entry_id, &asked.version)?;
        Ok(Response::new(branch::pin(&self.hub, &volume, &asked.owner, point).await?))
    }

    async fn delete_pin(&self, request: Request<api::DeletePinRequest>) -> Answer<api::DeletePinResponse> {
        let asked = request.into_inner();
        let volume = self.find(&asked.volume_id).await?;
        branch::unpin(&self.hub, &volume, &asked.owner).await?;
        Ok(Response::new(api::DeletePinResponse {}))
    }

    async fn publish_bundle(&self, request: Request<api::PublishBundleRequest>) -> Answer<api::Bundle> {
        let asked = request.into_inner();
        let source = self.find(&asked.volume_id).await?;
        let name: Option<ResourceName> = optional("name", &asked.name)?;
        let point = point(&asked.entry_id, &asked.version)?;
        Ok(Response::new(bundle::publish(&self.hub, &source, point, name.as_ref()).await?))
    }

    async fn list_bundles(&self, _: Request<api::ListBundlesRequest>) -> Answer<api::ListBundlesResponse> {
        Ok(Response::new(api::ListBundlesResponse { bundles: bundle::list(&self.hub).await? }))
    }

    async fn install_bundle(&self, request: Request<api::InstallBundleRequest>) -> Answer<api::Volume> {
        let asked = request.into_inner();
        let bundle = bundle::find(&self.hub, &asked.bundle).await?;
        let name: Option<ResourceName> = optional("name", &asked.name)?;
        let new = NewVolume {
            request: request_id(&asked.request_id)?,
            unique: None,
            source: Source::Fork(bundle.id, Point::Present),
            required: None,
            hint: optional("node_hint", &asked.node_hint)?,
            limit: asked.quota_bytes.map_or(Limit::Default, Limit::Asked),
            domain: None,
            attributes: with_name(asked.attributes.into_iter().collect(), name.as_ref()),
        };
        Ok(Response::new(self.make(new).await?))
    }

    async fn delete_bundle(
        &self,
        request: Request<api::DeleteBundleRequest>,
    ) -> Answer<api::DeleteBundleResponse> {
        let bundle = request.into_inner().bundle;
        if let Some(bundle) = bundle::find_to_delete(&self.hub, RecordKind::Bundle, &bundle).await? {
            order::delete(&self.hub, &bundle, Attributes::new()).await?;
        }
        Ok(Response::new(api::DeleteBundleResponse {}))
    }

    async fn publish_template(&self, request: Request<api::PublishTemplateRequest>) -> Answer<api::Template> {
        let asked = request.into_inner();
        let source = self.find(&asked.volume_id).await?;
        let name: ResourceName = required("name", &asked.name)?;
        let point = point(&asked.entry_id, &asked.version)?;
        bundle::publish_template(&self.hub, &source, point, &name).await?;
        Ok(Response::new(self.template(&name).await?))
    }

    async fn delete_template(
        &self,
        request: Request<api::DeleteTemplateRequest>,
    ) -> Answer<api::DeleteTemplateResponse> {
        let name = request.into_inner().name;
        if let Some(template) = bundle::find_to_delete(&self.hub, RecordKind::Template, &name).await? {
            order::delete(&self.hub, &template, Attributes::new()).await?;
        }
        Ok(Response::new(api::DeleteTemplateResponse {}))
    }

    async fn set_quota(&self, request: Request<api::SetQuotaRequest>) -> Answer<api::Volume> {
        let asked = request.into_inner();
        let volume = self.find(&asked.volume_id).await?;
        settings::set_quota(&self.hub, &volume, asked.quota_bytes).await?;
        Ok(Response::new(self.hub.describe(&volume).await?))
    }

    async fn set_attributes(&self, request: Request<api::SetAttributesRequest>) -> Answer<api::Volume> {
        let asked = request.into_inner();
        let volume = self.find(&asked.volume_id).await?;
        let (expected, wanted) = (attributes(asked.expected), attributes(asked.attributes));
        settings::set_attributes(&self.hub, &volume, &expected, &wanted).await?;
        Ok(Response::new(self.hub.describe(&volume).await?))
    }

    async fn find_hooks(&self, request: Request<api::FindHooksRequest>) -> Answer<api::FindHooksResponse> {
        let request = request.into_inner();
        let domain = required("domain", &request.domain)?;
        let versions = self.hub.hooks.find(&domain, &hooks(&request.hooks)?);
        let versions = versions.into_iter().map(|tree| api::StoredVersion {
            version: tree.version.to_string(),
            manifest: tree.manifest.to_string(),
        });
        Ok(Response::new(api::FindHooksResponse { versions: versions.collect() }))
    }

    async fn tell_hooks(&self, request: Request<api::TellHooksRequest>) -> Answer<api::TellHooksResponse> {
        let request = request.into_inner();
        let domain = required("domain", &request.domain)?;
        let stored = request.version.unwrap_or_default();
        let version = required("version", &stored.version)?;
        let manifest = required("manifest", &stored.manifest)?;
        self.hub.hooks.tell(domain, VersionRef { version, manifest }, &hooks(&request.hooks)?);
        Ok(Response::new(api::TellHooksResponse {}))
    }

    async fn get_hub(&self, _: Request<api::GetHubRequest>) -> Answer<api::HubStatus> {
        Ok(Response::new(self.status().await?))
    }
}

/// Content ids from the wire.
fn hooks(bytes: &[Vec<u8>]) -> Result<Vec<Hash>, Error> {
    let id = |bytes: &Vec<u8>| <[u8; 32]>::try_from(bytes.as_slice()).map(Hash);
    bytes.iter().map(id).collect::<Result<_, _>>().map_err(|_| {
        InvalidField::Malformed { field: "hooks", reason: "each is a BLAKE3 hash of 32 bytes".to_owned() }
            .into()
    })
}

/// Tells if a list that asks for an attribute asks for this record.
fn asked_for(volume: &api::Volume, request: &api::ListVolumesRequest) -> bool {
    let value = &request.attribute_value;
    request.attribute.is_empty()
        || volume.attributes.get(&request.attribute).is_some_and(|found| value.is_empty() || found == value)
}

/// The caller's request id, or a fresh one.
fn request_id(text: &str) -> Result<RequestId, Error> {
    Ok(optional("request_id", text)?.unwrap_or_else(RequestId::random))
}

/// The request that makes a volume, and the unique name that has to be looked at first.
fn volume_request(text: &str, unique: &str) -> Result<(RequestId, Option<UniqueName>), Error> {
    if unique.is_empty() {
        return Ok((request_id(text)?, None));
    }
    let unique = UniqueName::new(RecordKind::Volume, unique);
    Ok((first(&unique), Some(unique)))
}

/// Reads the pair of entry and version; the entry says more, so it wins.
fn point(entry: &str, version: &str) -> Result<Point, Error> {
    let entry = optional("entry_id", entry)?;
    let version = optional("version", version)?;
    Ok(match (entry, version) {
        (Some(entry), _) => Point::Entry(entry),
        (None, Some(version)) => Point::Version(version),
        (None, None) => Point::Present,
    })
}

fn page_size(asked: u32) -> usize {
    match usize::try_from(asked) {
        Ok(0) => PAGE,
        Ok(asked) => asked.min(LARGEST_PAGE),
        Err(_) => LARGEST_PAGE,
    }
}

fn check(name: &str, ok: bool, detail: &str, remedy: &str) -> wire::Check {
    wire::Check { name: name.to_owned(), ok, detail: detail.to_owned(), remedy: remedy.to_owned() }
}
