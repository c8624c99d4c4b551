//! The lifecycle of projects: each method is one call of the hub, with its answer in words of `types`.

use std::time::Duration;

use proto::hub;
use proto::hub::hub_client::HubClient;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use types::{NodeName, RequestId, ResourceName};

use crate::bundle::{Bundle, FORKED_FROM, NewInstall};
use crate::cluster::{HubStatus, Location, Node, Template};
use crate::error::Error;
use crate::project::{NewFork, NewProject, Point, Project, VolumeRef};
use crate::timeline::{Restored, Synced, TimelineEntry, Woken};

/// Bringing a large project to a node takes minutes; the hub goes on when this ends, and a retry joins it.
pub const LONG_CALL: Duration = Duration::from_secs(30 * 60);

/// Anything that only looks.
pub const SHORT_CALL: Duration = Duration::from_secs(30);

/// How many items a list asks for at once.
const PAGE: u32 = 500;

/// Projects of one hub. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Projects {
    hub: HubClient<Channel>,
    long: Duration,
}

impl Projects {
    /// Prepares a connection to the hub at `address` (`host:port`). It connects on first use.
    ///
    /// # Errors
    /// The address is none.
    pub fn connect(address: &str) -> Result<Self, Error> {
        let channel = proto::client::channel(address)
            .map_err(|source| Error::Address { address: address.to_owned(), source })?;
        Ok(Self::new(proto::client::hub(channel)))
    }

    /// Uses a client that is there already.
    pub fn new(hub: HubClient<Channel>) -> Self {
        Self { hub, long: LONG_CALL }
    }

    /// Gives long calls this much time instead of [`LONG_CALL`].
    #[must_use]
    pub fn with_timeout(self, long: Duration) -> Self {
        Self { long, ..self }
    }

    /// Returns the hub's client, for calls that this library does not have.
    pub fn client(&self) -> HubClient<Channel> {
        self.hub.clone()
    }

    fn long<T>(&self, message: T) -> Request<T> {
        timed(message, self.long)
    }

    /// Makes a project, empty or from a template.
    pub async fn create(&self, new: NewProject) -> Result<Project, Error> {
        let request = hub::CreateVolumeRequest {
            request_id: new.request.unwrap_or_else(RequestId::random).to_string(),
            name: text(new.name.as_ref()),
            template: text(new.template.as_ref()),
            node: text(new.node.as_ref()),
            node_hint: text(new.node_hint.as_ref()),
            quota_bytes: new.quota.to_wire(),
            domain: text(new.domain.as_ref()),
            attributes: new.attributes.into_iter().collect(),
            ..Default::default()
        };
        let answer = self.client().create_volume(self.long(request)).await;
        Ok(took("create the project", answer)?.try_into()?)
    }

    /// Makes a copy of a project: its present state, or a point on its timeline. No data moves.
    pub async fn fork(&self, source: impl Into<VolumeRef>, fork: NewFork) -> Result<Project, Error> {
        let (entry_id, version) = Point::to_wire(fork.at);
        let request = hub::ForkVolumeRequest {
            request_id: fork.request.unwrap_or_else(RequestId::random).to_string(),
            source_volume_id: source.into().to_string(),
            entry_id,
            version,
            name: text(fork.name.as_ref()),
            node_hint: text(fork.node_hint.as_ref()),
            quota_bytes: fork.quota.to_wire(),
            attributes: fork.attributes.into_iter().collect(),
            ..Default::default()
        };
        let answer = self.client().fork_volume(self.long(request)).await;
        Ok(took("fork the project", answer)?.try_into()?)
    }

    /// Returns a project by its id, or by a name that only one carries.
    pub async fn get(&self, project: impl Into<VolumeRef>) -> Result<Project, Error> {
        let request = hub::GetVolumeRequest { volume_id: project.into().to_string(), ..Default::default() };
        let answer = self.client().get_volume(timed(request, SHORT_CALL)).await;
        Ok(took("look at the project", answer)?.try_into()?)
    }

    /// Returns all projects (and other records), by id; only those on `node` if one is given.
    pub async fn list(&self, node: Option<&NodeName>) -> Result<Vec<Project>, Error> {
        let mut projects = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = hub::ListVolumesRequest {
                page_size: PAGE,
                page_token,
                node: text(node),
                ..Default::default()
            };
            let page = took("list projects", self.client().list_volumes(timed(request, SHORT_CALL)).await)?;
            for volume in page.volumes {
                projects.push(volume.try_into()?);
            }
            if page.next_page_token.is_empty() {
                return Ok(projects);
            }
            page_token = page.next_page_token;
        }
    }

    /// Makes the present state a durable entry that does not thin with the others.
    pub async fn snapshot(
        &self,
        project: impl Into<VolumeRef>,
        label: impl Into<String>,
    ) -> Result<TimelineEntry, Error> {
        let request =
            hub::SnapshotVolumeRequest { volume_id: project.into().to_string(), label: label.into() };
        let answer = self.client().snapshot_volume(self.long(request)).await;
        Ok(took("snapshot the project", answer)?.try_into()?)
    }

    /// Returns the timeline, newest first, at most `most` entries.
    pub async fn timeline(
        &self,
        project: impl Into<VolumeRef>,
        most: usize,
    ) -> Result<Vec<TimelineEntry>, Error> {
        let volume_id = project.into().to_string();
        let mut entries: Vec<TimelineEntry> = Vec::new();
        let mut page_token = String::new();
        while entries.len() < most {
            let left = u32::try_from(most - entries.len()).unwrap_or(PAGE).min(PAGE);
            let request =
                hub::ListEntriesRequest { volume_id: volume_id.clone(), page_size: left, page_token };
            let page =
                took("read the timeline", self.client().list_entries(timed(request, SHORT_CALL)).await)?;
            for entry in page.entries {
                entries.push(entry.try_into()?);
            }
            if page.next_page_token.is_empty() {
                break;
            }
            page_token = page.next_page_token;
        }
        entries.truncate(most);
        Ok(entries)
    }

    /// Brings the project back to a point on its timeline; the present state is kept as a branch.
    pub async fn restore(&self, project: impl Into<VolumeRef>, to: Point) -> Result<Restored, Error> {
        let (entry_id, version) = Point::to_wire(Some(to));
        let request = hub::RestoreVolumeRequest { volume_id: project.into().to_string(), entry_id, version };
        let answer = self.client().restore_volume(self.long(request)).await;
        Ok(took("restore the project", answer)?.try_into()?)
    }

    /// Names a point of the timeline, which is then never thinned; nothing: the durable head. A branch that names another
    /// entry is an error unless it may move.
    pub async fn set_branch(
        &self,
        project: impl Into<VolumeRef>,
        branch: impl Into<String>,
        at: Option<Point>,
        may_move: bool,
    ) -> Result<TimelineEntry, Error> {
        let (entry_id, version) = Point::to_wire(at);
        let request = hub::SetBranchRequest {
            volume_id: project.into().to_string(),
            branch: branch.into(),
            entry_id,
            version,
            r#move: may_move,
        };
        let answer = self.client().set_branch(timed(request, SHORT_CALL)).await;
        Ok(took("set the branch", answer)?.try_into()?)
    }

    /// Removes a branch. OK where there is none.
    pub async fn delete_branch(
        &self,
        project: impl Into<VolumeRef>,
        branch: impl Into<String>,
    ) -> Result<(), Error> {
        let request =
            hub::DeleteBranchRequest { volume_id: project.into().to_string(), branch: branch.into() };
        let answer = self.client().delete_branch(timed(request, SHORT_CALL)).await;
        took("delete the branch", answer).map(|hub::DeleteBranchResponse {}| ())
    }

    /// Keeps a point of the timeline for as long as `owner` needs it; nothing: the durable head.
    pub async fn pin(
        &self,
        project: impl Into<VolumeRef>,
        owner: impl Into<String>,
        at: Option<Point>,
    ) -> Result<TimelineEntry, Error> {
        let (entry_id, version) = Point::to_wire(at);
        let request = hub::SetPinRequest {
            volume_id: project.into().to_string(),
            owner: owner.into(),
            entry_id,
            version,
        };
        let answer = self.client().set_pin(timed(request, SHORT_CALL)).await;
        Ok(took("pin the entry", answer)?.try_into()?)
    }

    /// Lets go of what `owner` pinned. OK where it pinned nothing.
    pub async fn unpin(&self, project: impl Into<VolumeRef>, owner: impl Into<String>) -> Result<(), Error> {
        let request = hub::DeletePinRequest { volume_id: project.into().to_string(), owner: owner.into() };
        let answer = self.client().delete_pin(timed(request, SHORT_CALL)).await;
        took("unpin the entry", answer).map(|hub::DeletePinResponse {}| ())
    }

    /// Publishes a point of a project (nothing: its present state) as a bundle. The same state is the same bundle.
    pub async fn publish(
        &self,
        project: impl Into<VolumeRef>,
        at: Option<Point>,
        name: Option<&ResourceName>,
    ) -> Result<Bundle, Error> {
        let (entry_id, version) = Point::to_wire(at);
        let volume_id = project.into().to_string();
        let request = hub::PublishBundleRequest { volume_id, entry_id, version, name: text(name) };
        let answer = self.client().publish_bundle(self.long(request)).await;
        Ok(took("publish the project", answer)?.try_into()?)
    }

    /// Returns all bundles, by id.
    pub async fn bundles(&self) -> Result<Vec<Bundle>, Error> {
        let answer = self.client().list_bundles(timed(hub::ListBundlesRequest {}, SHORT_CALL)).await;
        let bundles = took("list bundles", answer)?.bundles;
        Ok(bundles.into_iter().map(Bundle::try_from).collect::<Result<_, _>>()?)
    }

    /// Makes a project from a bundle (its id, or its name); the project says so ([`FORKED_FROM`]).
    pub async fn install(&self, bundle: impl Into<VolumeRef>, new: NewInstall) -> Result<Project, Error> {
        let bundle = bundle.into().to_string();
        let mut attributes = new.attributes;
        attributes.entry(FORKED_FROM.to_owned()).or_insert_with(|| bundle.clone());
        let request = hub::InstallBundleRequest {
            request_id: new.request.unwrap_or_else(RequestId::random).to_string(),
            bundle,
            name: text(new.name.as_ref()),
            node_hint: text(new.node_hint.as_ref()),
            quota_bytes: new.quota.to_wire(),
            attributes: attributes.into_iter().collect(),
        };
        let answer = self.client().install_bundle(self.long(request)).await;
        Ok(took("install the bundle", answer)?.try_into()?)
    }

    /// Deletes a bundle from which nothing that is there was made. OK where there is none.
    pub async fn delete_bundle(&self, bundle: impl Into<VolumeRef>) -> Result<(), Error> {
        let request = hub::DeleteBundleRequest { bundle: bundle.into().to_string() };
        let answer = self.client().delete_bundle(self.long(request)).await;
        took("delete the bundle", answer).map(|hub::DeleteBundleResponse {}| ())
    }

    /// Publishes a point of a project (nothing: its present state) as the template of a name.
    pub async fn publish_template(
        &self,
        name: &ResourceName,
        project: impl Into<VolumeRef>,
        at: Option<Point>,
    ) -> Result<Template, Error> {
        let (entry_id, version) = Point::to_wire(at);
        let volume_id = project.into().to_string();
        let request = hub::PublishTemplateRequest { name: name.to_string(), volume_id, entry_id, version };
        let answer = self.client().publish_template(self.long(request)).await;
        Ok(took("publish the template", answer)?.try_into()?)
    }

    /// Deletes a template (by name, or by its record's id) from which nothing that is there was made.
    pub async fn delete_template(&self, template: impl Into<VolumeRef>) -> Result<(), Error> {
        let request = hub::DeleteTemplateRequest { name: template.into().to_string() };
        let answer = self.client().delete_template(self.long(request)).await;
        took("delete the template", answer).map(|hub::DeleteTemplateResponse {}| ())
    }

    /// Makes the present state durable. Writes nothing where nothing changed.
    pub async fn sync(&self, project: impl Into<VolumeRef>) -> Result<Synced, Error> {
        let request = hub::TriggerSyncRequest { volume_id: project.into().to_string() };
        let answer = self.client().trigger_sync(self.long(request)).await;
        Ok(took("sync the project", answer)?.try_into()?)
    }

    /// Puts the project to sleep: durable first, then off its node.
    pub async fn hibernate(&self, project: impl Into<VolumeRef>) -> Result<Project, Error> {
        let request = hub::HibernateVolumeRequest { volume_id: project.into().to_string() };
        let answer = self.client().hibernate_volume(self.long(request)).await;
        Ok(took("put the project to sleep", answer)?.try_into()?)
    }

    /// Makes the project usable on one of `candidates` (none given: on any node): there, moved, or woken. From a dead
    /// node it is taken over, and the answer says what may be missing.
    pub async fn wake(&self, project: impl Into<VolumeRef>, candidates: &[NodeName]) -> Result<Woken, Error> {
        let request = hub::EnsureCachedRequest {
            volume_id: project.into().to_string(),
            candidates: candidates.iter().map(ToString::to_string).collect(),
            ..hub::EnsureCachedRequest::default()
        };
        let answer = self.client().ensure_cached(self.long(request)).await;
        Ok(took("wake the project", answer)?.try_into()?)
    }

    /// Moves the project to a node.
    pub async fn move_to(&self, project: impl Into<VolumeRef>, node: &NodeName) -> Result<Project, Error> {
        let request =
            hub::MoveVolumeRequest { volume_id: project.into().to_string(), node: node.to_string() };
        let answer = self.client().move_volume(self.long(request)).await;
        Ok(took("move the project", answer)?.try_into()?)
    }

    /// Deletes the project. OK where there is none.
    pub async fn delete(&self, project: impl Into<VolumeRef>) -> Result<(), Error> {
        let request =
            hub::DeleteVolumeRequest { volume_id: project.into().to_string(), ..Default::default() };
        let answer = self.client().delete_volume(self.long(request)).await;
        took("delete the project", answer).map(|hub::DeleteVolumeResponse {}| ())
    }

    /// Returns where the project can be reached now. Moves nothing.
    pub async fn locate(&self, project: impl Into<VolumeRef>) -> Result<Location, Error> {
        let request = hub::ResolveRequest { volume_id: project.into().to_string() };
        let answer = self.client().resolve(timed(request, SHORT_CALL)).await;
        Ok(took("find the project", answer)?.try_into()?)
    }

    /// Returns the nodes that the hub knows, by name.
    pub async fn nodes(&self) -> Result<Vec<Node>, Error> {
        let answer = self.client().list_nodes(timed(hub::ListNodesRequest {}, SHORT_CALL)).await;
        let nodes = took("list nodes", answer)?.nodes;
        Ok(nodes.into_iter().map(Node::try_from).collect::<Result<_, _>>()?)
    }

    /// Returns a template by its name.
    pub async fn template(&self, name: &ResourceName) -> Result<Template, Error> {
        let request = hub::GetTemplateRequest { name: name.to_string() };
        let answer = self.client().get_template(timed(request, SHORT_CALL)).await;
        Ok(took("look at the template", answer)?.try_into()?)
    }

    /// Returns all templates, by name.
    pub async fn templates(&self) -> Result<Vec<Template>, Error> {
        let answer = self.client().list_templates(timed(hub::ListTemplatesRequest {}, SHORT_CALL)).await;
        let templates = took("list templates", answer)?.templates;
        Ok(templates.into_iter().map(Template::try_from).collect::<Result<_, _>>()?)
    }

    /// Returns what the hub says about itself.
    pub async fn hub_status(&self) -> Result<HubStatus, Error> {
        let answer = self.client().get_hub(timed(hub::GetHubRequest {}, SHORT_CALL)).await;
        Ok(took("look at the hub", answer)?.try_into()?)
    }
}

fn timed<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

fn took<T>(action: &'static str, answer: Result<Response<T>, Status>) -> Result<T, Error> {
    answer.map(Response::into_inner).map_err(|status| Error::Hub { action, status })
}

fn text(value: Option<&impl ToString>) -> String {
    value.map_or_else(String::new, ToString::to_string)
}
