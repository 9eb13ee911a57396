"""The token store: episodes as tokens and actions on disk, written by one or more processes and read in windows.

    STORE/store.json                      facts about the tokens: adapter hashes, grid, codebook, frame rate, actions
    STORE/adapter_1f.../                  the adapter that wrote the tokens, to decode them and generated ones
    STORE/statistics_5c.../               a KL model's latent statistics, which all writers share
    STORE/tokens_0a.../SPLIT/             the episodes of a split, for example train
        plan_00000/shards.json            the names of each shard's episodes: [["a.mp4", "b.mp4"], ["c.mp4"]]
        plan_00001/shards.json            the plan that replaced it, because episodes were added
        shard_00000/shard.safetensors     the tokens and actions of its episodes, one episode after another
        shard_00003_r1/                   the first revision of shard 3, whose episode's file had changed
    STORE/tokens_0a.../_written/SPLIT/    a record of each shard, with its digest: a lost or swapped shard is missed

A shard has N steps, and in its header the name, digest, first frame, frames and steps of each episode, the tasks of
those that have one, the store's tokens folder, the shard's own place, and SHA-256 checksums of its arrays:

    codes        (N, H, W) int32: FSQ codebook indices, or
    patches      (N, H, W, d) float32: a KL model's normalized patches
    actions      (N, f[, a]) int64 or float32: the actions that led to each step's frames, if the videos have any
    num_actions  (N,) uint8: how many of those f actions exist

and what at least one of its episodes has, unknown for the others:

    rewards      (N, f) float32: the reward of each frame, NaN where unknown
    terminated   (N,) uint8: 1 where the episode ended, 0 where it went on, 2 where unknown
    state        (N, f, s) float32: the state of each frame, NaN where unknown; step 0 has one frame, the last of its f

Rules that let readers and several writers share a store:

- What is read is checked: store.json by its checksum and its ranges, each shard's header when the store opens, its
  arrays and codes when they are first read, everything by `vidtok-plugin check`. `tokenize` writes damaged and lost
  shards again. Stores from before there were checksums are checked by sizes and values alone.
- Every file and folder appears whole or not at all. A shard never changes; the latest revision counts.
- Folders are named by a hash of what determines their content, so different tokens never share a folder.
- store.json names the current adapter and tokens. An update writes new tokens next to the current ones, then switches
  atomically. Until then the store serves the previous tokens.
- The plan decides which episodes go into which shard. The one writer of a split makes it and has the shards written, by
  itself, by processes or by a Ray cluster; of two that write the same shard, the first one's is kept. The store is
  therefore the same to the byte whoever writes the shards. Several splits may be written at the same time.

Shapes in this package: N steps of a shard, T steps of a window, H W rows and columns of the grid, d values of a patch,
f frames in a step, a components of a continuous action, s components of a state.
"""
