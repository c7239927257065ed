//! Who has a volume: one writer, or many readers.
//!
//! The rules are a function from what is stored and what is asked to what
//! will be stored, so that they can be read, and tested, in one place.

use link::{Access, FrontId, Refused};

/// Most fronts that can read one volume at a time (its record has so many
/// places).
pub const MAX_FRONTS: usize = 64;

/// A front's hold on a volume, as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Who.
    pub front: FrontId,
    /// Which start of that front.
    pub incarnation: u64,
    /// The volume's verifier under which every change that the front had
    /// answered was there.
    pub verifier: u64,
}

/// Everybody who has a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Attachments {
    /// Nobody.
    #[default]
    None,
    /// One front, which may change it.
    Writer(Attachment),
    /// Fronts that may not; at least one, at most [`MAX_FRONTS`].
    Readers(Vec<Attachment>),
}

impl Attachments {
    /// Everybody, and what for.
    pub fn iter(&self) -> impl Iterator<Item = (Access, &Attachment)> {
        let (access, all) = match self {
            Self::None => (Access::Read, &[][..]),
            Self::Writer(writer) => (Access::Write, std::slice::from_ref(writer)),
            Self::Readers(readers) => (Access::Read, &readers[..]),
        };
        all.iter().map(move |attachment| (access, attachment))
    }

    /// How many fronts have the volume.
    #[must_use]
    pub fn count(&self) -> usize {
        self.iter().count()
    }

    /// Whether nobody has it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// How `front` has it, and what is stored about that.
    #[must_use]
    pub fn of(&self, front: FrontId) -> Option<(Access, Attachment)> {
        let found = self.iter().find(|(_, attachment)| attachment.front == front);
        found.map(|(access, attachment)| (access, *attachment))
    }

    /// Whether `front` has it.
    #[must_use]
    pub fn has(&self, front: FrontId) -> bool {
        self.of(front).is_some()
    }

    /// Who has it when `new` gets `access`. A front that has the volume gets
    /// it again; one that comes back for another access changes its own hold,
    /// by the same rules towards all others.
    ///
    /// # Errors
    /// Why `new` cannot have it.
    pub fn with(&self, new: Attachment, access: Access) -> Result<Self, Refused> {
        let others = self.without(new.front);
        match (others, access) {
            (Self::Writer(writer), _) => Err(Refused::HasWriter(writer.front)),
            (Self::None, Access::Write) => Ok(Self::Writer(new)),
            (Self::None, Access::Read) => Ok(Self::Readers(vec![new])),
            (Self::Readers(readers), Access::Write) => {
                Err(Refused::HasReaders(u32::try_from(readers.len()).unwrap_or(u32::MAX)))
            }
            (Self::Readers(readers), Access::Read) if readers.len() >= MAX_FRONTS => {
                Err(Refused::Full)
            }
            (Self::Readers(mut readers), Access::Read) => {
                readers.push(new);
                Ok(Self::Readers(readers))
            }
        }
    }

    /// Who has it when `front` has let go.
    #[must_use]
    pub fn without(&self, front: FrontId) -> Self {
        match self {
            Self::None => Self::None,
            Self::Writer(writer) if writer.front == front => Self::None,
            Self::Writer(writer) => Self::Writer(*writer),
            Self::Readers(readers) => {
                let rest: Vec<Attachment> =
                    readers.iter().copied().filter(|reader| reader.front != front).collect();
                if rest.is_empty() { Self::None } else { Self::Readers(rest) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn front(number: u8) -> Attachment {
        Attachment { front: FrontId([number; 16]), incarnation: 0, verifier: 7 }
    }

    #[test]
    fn a_writer_is_alone_and_readers_share() {
        let none = Attachments::None;
        let written = none.with(front(1), Access::Write).expect("free");
        assert_eq!(written.with(front(2), Access::Write), Err(Refused::HasWriter(front(1).front)));
        assert_eq!(written.with(front(2), Access::Read), Err(Refused::HasWriter(front(1).front)));

        let read = none.with(front(1), Access::Read).expect("free");
        let read = read.with(front(2), Access::Read).expect("shared");
        assert_eq!(read.count(), 2);
        assert_eq!(read.with(front(3), Access::Write), Err(Refused::HasReaders(2)));
        assert_eq!(read.with(front(2), Access::Write), Err(Refused::HasReaders(1)));
    }

    /// The answer to an attach may get lost, and the front then asks again.
    #[test]
    fn asking_again_changes_nothing_but_what_the_front_says_about_itself() {
        let written = Attachments::Writer(front(1));
        let again = Attachment { incarnation: 1, verifier: 8, ..front(1) };
        assert_eq!(written.with(front(1), Access::Write), Ok(written.clone()));
        assert_eq!(written.with(again, Access::Write), Ok(Attachments::Writer(again)));
        assert_eq!(written.with(again, Access::Read), Ok(Attachments::Readers(vec![again])));
    }

    #[test]
    fn the_last_place_is_given_out_and_not_one_more() {
        let mut all = Attachments::None;
        for number in 0..MAX_FRONTS {
            all = all.with(front(number as u8), Access::Read).expect("a place");
        }
        assert_eq!(all.with(front(200), Access::Read), Err(Refused::Full));
        assert!(all.with(front(3), Access::Read).is_ok(), "it has a place already");
        for number in 0..MAX_FRONTS {
            all = all.without(front(number as u8).front);
        }
        assert_eq!(all, Attachments::None);
    }
}
