"""Steps of language models: transformers' networks and collators, and plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peers.loop import Given, Peer, Rows, loader, stepping

START, END = 2, 3  # of every vocabulary
T = 2.0  # DistilBERT's temperature


def next_token(given: Given) -> Peer:
    """GPT-2 of transformers, and its collator for causal language modelling."""
    from transformers import GPT2Config, GPT2LMHeadModel

    field, sizes = given.spec.texts[0], sizes_of(given)
    config = GPT2Config(
        vocab_size=field.vocabulary,
        n_positions=field.shape[0],
        n_embd=sizes.width,
        n_layer=sizes.depth,
        n_head=sizes.num_heads,
        bos_token_id=START,
        eos_token_id=END,
        loss_type="ForCausalLM",
        use_cache=False,
    )
    theirs = GPT2LMHeadModel(config)
    step = stepping(given, [theirs], lambda batch: theirs(**batch).loss)
    return Peer("transformers", loader(given, texts(given), collator(field.vocabulary, masked=False)), step)


def masked_token(given: Given) -> Peer:
    """BERT of transformers, and its collator for masked language modelling."""
    theirs = masked_bert(given, sizes_of(given).depth)
    step = stepping(given, [theirs], lambda batch: theirs(**batch).loss)
    batches = loader(given, texts(given), collator(given.spec.texts[0].vocabulary, masked=True))
    return Peer("transformers", batches, step)


def distilled_tokens(given: Given) -> Peer:
    """DistilBERT's step on transformers' networks: soft targets and cosine on all real tokens, and the masked ones."""
    depth = sizes_of(given).depth
    student, teacher = masked_bert(given, depth), masked_bert(given, 2 * depth).eval()
    apart, angle = nn.KLDivLoss(reduction="batchmean"), nn.CosineEmbeddingLoss()

    def loss(batch: Any) -> Tensor:
        with torch.no_grad():
            theirs = teacher(batch["input_ids"], batch["attention_mask"], output_hidden_states=True)
        ours = student(**batch, output_hidden_states=True)
        real = batch["attention_mask"].bool()
        scores = [each.logits[real] / T for each in (ours, theirs)]
        soft = apart(scores[0].log_softmax(-1), scores[1].softmax(-1)) * T**2
        states = [each.hidden_states[-1][real] for each in (ours, theirs)]
        return 5 * soft + 2 * ours.loss + angle(*states, torch.ones(len(states[0])))

    batches = loader(given, texts(given), collator(given.spec.texts[0].vocabulary, masked=True))
    return Peer("transformers", batches, stepping(given, [student], loss))


def translate(given: Given) -> Peer:
    """PyTorch's own transformer with teacher forcing and label smoothing, batches padded to their longest."""
    field, written = given.spec.texts[0], given.spec.targets[0]
    sizes, ours = sizes_of(given), sizes_of(given, of_objective=True)
    longest = max(field.shape[0], written.shape[0])
    theirs = Sequences(field.vocabulary, sizes.width, sizes.depth, sizes.num_heads, longest)
    cost = nn.CrossEntropyLoss(ignore_index=0, label_smoothing=ours.label_smoothing)

    def collate(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        pairs = zip(*((a[a != 0].long(), b[b != 0].long()) for a, b in rows), strict=True)
        return tuple(nn.utils.rnn.pad_sequence(list(each), batch_first=True) for each in pairs)

    def loss(batch: Any) -> Tensor:
        read, wanted = batch
        return cost(theirs(read, wanted[:, :-1]).flatten(0, 1), wanted[:, 1:].flatten())

    rows = Rows(given.columns[field.key], given.columns[written.target_key])
    return Peer("plain PyTorch", loader(given, rows, collate), stepping(given, [theirs], loss))


class Sequences(nn.Module):
    """nn.Transformer between embeddings and a read-out that shares them."""

    def __init__(self, vocabulary: int, width: int, depth: int, heads: int, length: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.randn(length, width) * 0.02)
        nn.init.normal_(self.vectors.weight, std=0.02)
        self.network = nn.Transformer(
            width, heads, depth, depth, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True
        )

    def forward(self, read: Tensor, written: Tensor) -> Tensor:
        ends = [self.vectors(each) + self.places[: each.shape[1]] for each in (read, written)]
        later = nn.Transformer.generate_square_subsequent_mask(written.shape[1])
        hidden = self.network(
            *ends,
            tgt_mask=later,
            src_key_padding_mask=torch.zeros(read.shape).masked_fill(read == 0, -torch.inf),
            tgt_key_padding_mask=torch.zeros(written.shape).masked_fill(written == 0, -torch.inf),
            memory_key_padding_mask=torch.zeros(read.shape).masked_fill(read == 0, -torch.inf),
            tgt_is_causal=True,
        )
        return F.linear(hidden, self.vectors.weight)


def embed_words(given: Given) -> Peer:
    """Skip-gram with negatives, pairs of each text by its words' places, five negatives of each pair."""
    field, window = given.spec.texts[0], sizes_of(given, of_objective=True).window
    width = int(given.ours.model.width)  # type: ignore[arg-type]
    inner, outer = nn.Embedding(field.vocabulary, width), nn.Embedding(field.vocabulary, width)
    counts = torch.tensor(field.occurrences, dtype=torch.float) ** 0.75
    counts[:5] = 0

    def collate(rows: list[tuple[Tensor]]) -> tuple[Tensor, Tensor]:
        words, around = [], []
        for (text,) in rows:
            text = text[text > 4].long()
            reach = torch.randint(1, window + 1, (len(text),))
            far = (torch.arange(len(text))[:, None] - torch.arange(len(text))).abs()
            here, there = ((far > 0) & (far <= reach[:, None])).nonzero(as_tuple=True)
            words.append(text[here])
            around.append(text[there])
        return torch.cat(words), torch.cat(around)

    def loss(batch: Any) -> Tensor:
        words, around = batch
        negatives = torch.multinomial(counts, len(words) * 5, replacement=True).view(-1, 5)
        v = inner(words)  # [P, D]
        positive = F.logsigmoid((v * outer(around)).sum(1))
        negative = F.logsigmoid(-(outer(negatives) @ v[:, :, None]).squeeze(2)).sum(1)
        return -(positive + negative).mean()

    return Peer(
        "plain PyTorch", loader(given, Rows(given.columns[field.key]), collate), stepping(given, [inner, outer], loss)
    )


def masked_bert(given: Given, depth: int) -> nn.Module:
    """Return transformers' BERT with the sizes of ours, and so many layers."""
    from transformers import BertConfig, BertForMaskedLM

    field, sizes = given.spec.texts[0], sizes_of(given)
    return BertForMaskedLM(
        BertConfig(
            vocab_size=field.vocabulary,
            hidden_size=sizes.width,
            num_hidden_layers=depth,
            num_attention_heads=sizes.num_heads,
            intermediate_size=4 * sizes.width,
            max_position_embeddings=field.shape[0],
        )
    )


def sizes_of(given: Given, of_objective: bool = False) -> Any:
    """Return the options of our network, or of our objective."""
    return (given.ours if of_objective else given.ours.model).config


def texts(given: Given) -> Rows:
    """Return texts without padding, as transformers' data sets hold them."""
    return Rows(
        given.columns[given.spec.texts[0].key], change=lambda tokens: {"input_ids": tokens[tokens != 0].tolist()}
    )


def collator(vocabulary: int, masked: bool) -> Any:
    """Return transformers' collator for tokens that were numbered by us."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    words = ("<pad>", "<unk>", "<start>", "<end>", "<mask>", *(f"w{i}" for i in range(5, vocabulary)))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")),
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )
    return DataCollatorForLanguageModeling(tokenizer, mlm=masked)
