"""The paper that both trainers implement, as TRL's model cards cite it."""

import textwrap


PAPER = {
    "title": "Aligning Large Language Models via Fine-grained Supervision",
    "id": "2406.02756",
    "citation": textwrap.dedent("""\
        @inproceedings{xu2024aligning,
            title     = {{Aligning Large Language Models via Fine-grained Supervision}},
            author    = {Dehong Xu and Liang Qiu and Minseok Kim and Faisal Ladhak and Jaeyoung Do},
            year      = 2024,
            booktitle = {Proceedings of the 62nd Annual Meeting of the Association for Computational Linguistics
                         (Volume 2: Short Papers)},
            pages     = {673--680},
        }"""),
}
