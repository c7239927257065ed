//! Volumes are given to fronts and taken back: what is stored, and who has to
//! wait for whom.

use std::rc::Rc;

use block_core::{BlockError, Device};
use link::{Access, FrontId, Refused, VolumeName};
use tracing::{error, info};

use crate::attachments::{Attachment, Attachments};
use crate::catalog::CommitError;
use crate::hold::Hold;
use crate::layout::VolumeRecord;
use crate::store::{Store, StoreError};
use crate::volume::Volume;

/// Order numbers below the epoch's bits: at a million changes a second they
/// last for half a year of one server run, and a million runs have an epoch.
const ORDER_BITS: u32 = 44;

/// Who wants a volume, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Who.
    pub front: FrontId,
    /// Which start of that front.
    pub incarnation: u64,
    /// What for.
    pub access: Access,
    /// The verifier under which every change that the front had answered is
    /// there, as it says; zero if it does not say.
    pub settled: u64,
    /// Whether this start of the front has had the volume, as it says.
    pub had: bool,
}

impl Claim {
    /// Whether somebody else may have had the volume since this start of the
    /// front did. An attachment is stored before it is answered, and until this
    /// start gives the volume back only others take it away: its later starts,
    /// a restore, a detach by force. So a writer that has had the volume and is
    /// not in its record may send again what it kept over what is newer.
    fn comes_too_late(&self, stored: Option<(Access, Attachment)>) -> bool {
        let is_stored = stored.is_some_and(|(_, stored)| stored.incarnation == self.incarnation);
        self.had && self.access == Access::Write && !is_stored
    }
}

/// A volume that was given to a front.
#[derive(Clone, Debug)]
pub struct Given {
    /// What its requests need.
    pub hold: Rc<Hold>,
    /// The verifier that is stored with the attachment.
    pub stored_verifier: u64,
}

impl<D: Device + 'static> Store<D> {
    /// Gives the volume to a front. When this returns, that is stored, and no
    /// request of an earlier hold of the same front runs any more, except for
    /// `own`, the hold that the asking session has. The stored verifier stays
    /// what it was until the front has settled.
    ///
    /// # Errors
    /// Why the front cannot have it.
    pub async fn attach(
        &self,
        volume: &Volume<D>,
        claim: Claim,
        own: Option<&Rc<Hold>>,
    ) -> Result<Given, Refused> {
        loop {
            let downs = self.downs();
            match self.give(volume, claim, own).await {
                // The device went down meanwhile: that decides nothing.
                Err(Refused::Failed) if self.downs() != downs => {}
                decided => return decided,
            }
        }
    }

    async fn give(
        &self,
        volume: &Volume<D>,
        claim: Claim,
        own: Option<&Rc<Hold>>,
    ) -> Result<Given, Refused> {
        let Claim { front, incarnation, access, settled, .. } = claim;
        if let Some(given) = self.while_down(volume, claim).await? {
            return Ok(given);
        }
        let _change = volume.change.lock().await;
        let old = self.existing(volume).map_err(|_| Refused::Unknown)?;
        if old.read_only && access == Access::Write {
            return Err(Refused::ReadOnly);
        }
        if old.provenance.coming.is_some() {
            return Err(Refused::Importing);
        }
        let (current, had) = (volume.requests.verifier(), old.attachments.of(front));
        if had.is_some_and(|(_, had)| had.incarnation > incarnation) {
            return Err(Refused::Stale);
        }
        if claim.comes_too_late(had) {
            return Err(Refused::NotYours);
        }
        // A writer that has the volume may miss answered changes until it has
        // sent them again and says so.
        let verifier = match had {
            Some((Access::Write, had)) if access == Access::Write && settled != current => {
                had.verifier
            }
            _ => current,
        };
        let attachment = Attachment { front, incarnation, verifier };
        let attachments = old.attachments.with(attachment, access)?;
        let own = own.filter(|own| own.check().is_ok() && own.access() == access);
        if own.is_none() {
            volume.revoke(|hold| hold.front() == front).await;
        }
        if old.attachments != attachments || !volume.has_epoch.get() {
            let raised = old.order_epoch.checked_add(u32::from(!volume.has_epoch.get()));
            let Some(order_epoch) = raised else {
                error!("the catalog says that order numbers are used up; it is damaged");
                return Err(Refused::Failed);
            };
            let record = VolumeRecord { attachments, order_epoch, ..old };
            if let Err(error) = self.commit(volume, record).await {
                error!("an attachment could not be stored: {error}");
                return Err(Refused::Failed);
            }
            volume.requests.raise_order(u64::from(order_epoch) << ORDER_BITS);
            volume.has_epoch.set(true);
        }
        let hold = own.cloned().unwrap_or_else(|| {
            let hold = Hold::new(front, access);
            volume.holds.borrow_mut().push(Rc::clone(&hold));
            hold
        });
        Ok(Given { hold, stored_verifier: verifier })
    }

    /// The answer of a device that is not there. While it is reset, who asks
    /// waits: a front that starts takes a refusal for the last word. When the
    /// device is given up, those that had a volume get it back to see their
    /// requests fail; nothing can be stored of that.
    async fn while_down(&self, volume: &Volume<D>, claim: Claim) -> Result<Option<Given>, Refused> {
        if !self.is_down() {
            return Ok(None);
        }
        self.end_of_reset().await;
        if !self.is_down() {
            return Ok(None);
        }
        let had = volume.record().attachments.of(claim.front);
        match had.filter(|(access, _)| *access == claim.access && volume.has_failed()) {
            Some((access, had)) => {
                let hold = Hold::new(claim.front, access);
                volume.holds.borrow_mut().push(Rc::clone(&hold));
                Ok(Some(Given { hold, stored_verifier: had.verifier }))
            }
            None => Err(Refused::Failed),
        }
    }

    /// Takes the volume back from a front that is done with it, after the
    /// last of its requests. A hold that was taken away is not the front's any
    /// more: if the front has the volume again, by another handle or session,
    /// that stays. Else what is stored may still name it, from a detach that
    /// could not be stored, and is put right.
    ///
    /// A writer that gives back what may miss answered changes, and has not said
    /// that it does not, takes with it that anybody knows. So the generation
    /// rises: whoever goes on with what it had is told.
    ///
    /// # Errors
    /// A [`StoreError`] when it could not be stored.
    pub async fn detach(&self, volume: &Volume<D>, hold: &Hold) -> Result<(), StoreError> {
        let front = hold.front();
        let _change = volume.change.lock().await;
        if hold.is_revoked() && volume.is_held_by(front) {
            return Ok(());
        }
        let old = self.existing(volume)?;
        volume.revoke(|hold| hold.front() == front).await;
        if volume.has_failed() {
            return Ok(());
        }
        if hold.is_outdated() {
            // The front does not know yet that it has changes to send again.
            return Err(CommitError::Unchanged(BlockError::Lost).into());
        }
        if let Some((access, had)) = old.attachments.of(front) {
            let is_whole = access == Access::Read || had.verifier == volume.requests.verifier();
            let generation = old.generation + u64::from(!is_whole);
            let attachments = old.attachments.without(front);
            self.commit(volume, VolumeRecord { attachments, generation, ..old }).await?;
        }
        Ok(())
    }

    /// Takes the volume away from `front`, or from everybody, whether or not
    /// they are done. What they still send fails, and the generation rises,
    /// so that nobody replays writes into what comes after.
    ///
    /// # Errors
    /// A [`StoreError`] when it could not be stored, or the front has no such
    /// volume.
    pub async fn force_detach(
        &self,
        name: &VolumeName,
        front: Option<FrontId>,
    ) -> Result<Rc<Volume<D>>, StoreError> {
        let volume = self.volume(name)?;
        let change = volume.change.lock().await;
        let old = self.existing(&volume)?;
        let attachments = match front {
            None => Attachments::None,
            Some(front) if old.attachments.has(front) => old.attachments.without(front),
            Some(front) => return Err(StoreError::NotAttached { name: name.clone(), front }),
        };
        volume.revoke(|hold| front.is_none_or(|front| hold.front() == front)).await;
        if attachments != old.attachments {
            let generation = old.generation + 1;
            self.commit(&volume, VolumeRecord { attachments, generation, ..old }).await?;
            info!(%name, "volume detached by force");
        }
        drop(change);
        Ok(volume)
    }
}

impl VolumeRecord {
    /// Whether the volume is not being imported.
    ///
    /// # Errors
    /// [`StoreError::Importing`].
    pub fn check_whole(&self) -> Result<(), StoreError> {
        match self.provenance.coming {
            None => Ok(()),
            Some(_) => Err(StoreError::Importing(self.name.clone())),
        }
    }

    /// Whether nobody has the volume; else who has it, and what to do.
    ///
    /// # Errors
    /// [`StoreError::Attached`].
    pub fn check_detached(&self, remedy: &'static str) -> Result<(), StoreError> {
        if self.attachments.is_empty() {
            return Ok(());
        }
        let who: Vec<String> = self
            .attachments
            .iter()
            .map(|(access, attachment)| match access {
                Access::Read => format!("reader {}", attachment.front),
                Access::Write => format!("writer {}", attachment.front),
            })
            .collect();
        Err(StoreError::Attached { name: self.name.clone(), who: who.join(", "), remedy })
    }
}
