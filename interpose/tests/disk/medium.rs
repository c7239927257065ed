//! What a disk holds while no machine is around it.

use std::rc::Rc;

use block_core::unit::{BLOCK_SIZE, Pba};

/// One block's bytes.
pub type Block = [u8; BLOCK_SIZE];

const ZERO: Block = [0; BLOCK_SIZE];
const FAN_BITS: u32 = 6;
const FAN: usize = 1 << FAN_BITS;

/// Six steps of six bits: 2^36 blocks, the most that a pool has.
const LEVELS: u32 = 6;

/// Blocks by their place; one that was never written is zero. A clone costs
/// nothing and shares every block until one side writes it.
#[derive(Clone, Default)]
pub struct Medium {
    root: Option<Rc<Node>>,
}

#[derive(Clone)]
enum Node {
    Branch([Option<Rc<Node>>; FAN]),
    Leaf([Option<Rc<Block>>; FAN]),
}

impl Medium {
    /// A medium of zeroes.
    pub fn new() -> Self {
        Self::default()
    }

    /// The block's bytes.
    pub fn block(&self, at: Pba) -> &Block {
        self.find(at).map_or(&ZERO, |block| block)
    }

    /// Replaces a block.
    pub fn set(&mut self, at: Pba, block: &Block) {
        if block == &ZERO {
            self.put(at, None);
        } else {
            self.put(at, Some(Rc::new(*block)));
        }
    }

    /// Rot: turns one bit of a block, `bit` below 32,768.
    pub fn flip(&mut self, at: Pba, bit: usize) {
        let mut block = *self.block(at);
        block[bit / 8] ^= 1 << (bit % 8);
        self.set(at, &block);
    }

    /// The blocks that are not zero, in ascending order.
    pub fn written(&self) -> Vec<Pba> {
        let mut found = Vec::new();
        if let Some(root) = &self.root {
            root.collect(0, &mut found);
        }
        found
    }

    pub(super) fn shared(&self, at: Pba) -> Option<Rc<Block>> {
        self.find(at).map(Rc::clone)
    }

    pub(super) fn put(&mut self, at: Pba, block: Option<Rc<Block>>) {
        assert!(at.0 < 1 << (FAN_BITS * LEVELS), "no pool has a block {}", at.0);
        let mut level = LEVELS - 1;
        let mut node = Rc::make_mut(self.root.get_or_insert_with(|| Rc::new(Node::at(level))));
        loop {
            let place = (at.0 >> (FAN_BITS * level)) as usize % FAN;
            match node {
                Node::Leaf(blocks) => {
                    blocks[place] = block;
                    return;
                }
                Node::Branch(nodes) => {
                    level -= 1;
                    node =
                        Rc::make_mut(nodes[place].get_or_insert_with(|| Rc::new(Node::at(level))));
                }
            }
        }
    }

    fn find(&self, at: Pba) -> Option<&Rc<Block>> {
        let mut level = LEVELS - 1;
        let mut node = self.root.as_ref()?;
        loop {
            let place = (at.0 >> (FAN_BITS * level)) as usize % FAN;
            match &**node {
                Node::Leaf(blocks) => return blocks[place].as_ref(),
                Node::Branch(nodes) => {
                    node = nodes[place].as_ref()?;
                    level -= 1;
                }
            }
        }
    }
}

impl Node {
    fn at(level: u32) -> Self {
        if level == 0 {
            Self::Leaf([const { None }; FAN])
        } else {
            Self::Branch([const { None }; FAN])
        }
    }

    fn collect(&self, prefix: u64, found: &mut Vec<Pba>) {
        match self {
            Self::Leaf(blocks) => {
                let here = (prefix << FAN_BITS..).zip(blocks);
                found.extend(here.filter(|(_, block)| block.is_some()).map(|(at, _)| Pba(at)));
            }
            Self::Branch(nodes) => {
                for (at, node) in (prefix << FAN_BITS..).zip(nodes) {
                    if let Some(node) = node {
                        node.collect(at, found);
                    }
                }
            }
        }
    }
}
