"""The publications that methods come from, as BibTeX."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A publication, enough for a citation."""

    key: str
    title: str
    authors: str  # BibTeX form: "Last, First and Last, First"
    year: int
    arxiv: str
    venue: str = ""

    def bibtex(self) -> str:
        """The BibTeX entry."""
        kind, place = ("inproceedings", "booktitle") if self.venue else ("misc", "howpublished")
        where = self.venue or f"arXiv:{self.arxiv}"
        fields = {
            "title": f"{{{self.title}}}",
            "author": self.authors,
            "year": str(self.year),
            place: where,
            "eprint": self.arxiv,
            "archivePrefix": "arXiv",
        }
        body = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
        return f"@{kind}{{{self.key},\n{body}\n}}"


LORA = Paper(
    key="hu2022lora",
    title="LoRA: Low-Rank Adaptation of Large Language Models",
    authors="Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and "
    "Li, Yuanzhi and Wang, Shean and Wang, Lu and Chen, Weizhu",
    year=2022,
    arxiv="2106.09685",
    venue="International Conference on Learning Representations",
)
RSLORA = Paper(
    key="kalajdzievski2023rslora",
    title="A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA",
    authors="Kalajdzievski, Damjan",
    year=2023,
    arxiv="2312.03732",
)
RELORA = Paper(
    key="lialin2024relora",
    title="ReLoRA: High-Rank Training Through Low-Rank Updates",
    authors="Lialin, Vladislav and Muckatira, Sherin and Shivagunde, Namrata and Rumshisky, Anna",
    year=2024,
    arxiv="2307.05695",
    venue="International Conference on Learning Representations",
)
COLA = Paper(
    key="xia2024cola",
    title="Chain of LoRA: Efficient Fine-tuning of Language Models via Residual Learning",
    authors="Xia, Wenhan and Qin, Chengwei and Hazan, Elad",
    year=2024,
    arxiv="2401.04151",
)
SST = Paper(
    key="zhao2025sst",
    title="Sparse Spectral Training and Inference on Euclidean and Hyperbolic Neural Networks",
    authors="Zhao, Jialin and Zhang, Yingtao and Li, Xinghang and Liu, Huaping and "
    "Cannistraci, Carlo Vittorio",
    year=2025,
    arxiv="2405.15481",
    venue="International Conference on Machine Learning",
)
GALORE = Paper(
    key="zhao2024galore",
    title="GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection",
    authors="Zhao, Jiawei and Zhang, Zhenyu and Chen, Beidi and Wang, Zhangyang and "
    "Anandkumar, Anima and Tian, Yuandong",
    year=2024,
    arxiv="2403.03507",
    venue="International Conference on Machine Learning",
)
FIRA = Paper(
    key="chen2024fira",
    title="Fira: Can We Achieve Full-rank Training of LLMs Under Low-rank Constraint?",
    authors="Chen, Xi and Feng, Kaituo and Li, Changsheng and Lai, Xunhao and Yue, Xiangyu and "
    "Yuan, Ye and Wang, Guoren",
    year=2024,
    arxiv="2410.01623",
)
APOLLO = Paper(
    key="zhu2025apollo",
    title="APOLLO: SGD-like Memory, AdamW-level Performance",
    authors="Zhu, Hanqing and Zhang, Zhenyu and Cong, Wenyan and Liu, Xi and Park, Sem and "
    "Chandra, Vikas and Long, Bo and Pan, David Z. and Wang, Zhangyang and Lee, Jinwon",
    year=2025,
    arxiv="2412.05270",
    venue="Conference on Machine Learning and Systems",
)
DCT_ADAMW = Paper(
    key="modoranu2025fft",
    title="FFT-based Dynamic Subspace Selection for Low-Rank Adaptive Optimization of Large Language "
    "Models",
    authors="Modoranu, Ionut-Vlad and Safaryan, Mher and Schultheis, Erik and Ryabinin, Max and "
    "Chumachenko, Artem and Alistarh, Dan",
    year=2025,
    arxiv="2505.17967",
)
SWITCHLORA = Paper(
    key="zhou2024switchlora",
    title="SwitchLoRA: Switched Low-Rank Adaptation Can Learn Full-Rank Information",
    authors="Zhou, Kaiye and Wang, Shucheng and Xu, Jun",
    year=2024,
    arxiv="2406.06564",
)
RESTARTS = Paper(
    key="glentis2025scalable",
    title="Scalable Parameter and Memory Efficient Pretraining for LLM: Recent Algorithmic Advances and "
    "Benchmarking",
    authors="Glentis, Athanasios and Li, Jiaxiang and Shang, Qiulin and Han, Andi and "
    "Tsaknakis, Ioannis and Wei, Quan and Hong, Mingyi",
    year=2025,
    arxiv="2505.22922",
)
SLTRAIN = Paper(
    key="han2024sltrain",
    title="SLTrain: a sparse plus low-rank approach for parameter and memory efficient pretraining",
    authors="Han, Andi and Li, Jiaxiang and Huang, Wei and Hong, Mingyi and Takeda, Akiko and "
    "Jawanpuria, Pratik and Mishra, Bamdev",
    year=2024,
    arxiv="2406.02214",
    venue="Advances in Neural Information Processing Systems",
)
LOST = Paper(
    key="li2025lost",
    title="LOST: Low-rank and Sparse Pre-training for Large Language Models",
    authors="Li, Jiaxi and Yin, Lu and Shen, Li and Xu, Jinjin and Xu, Liwu and Huang, Tianjin and "
    "Wang, Wenwu and Liu, Shiwei and Wang, Xilu",
    year=2025,
    arxiv="2508.02668",
)
WELORE = Paper(
    key="jaiswal2025welore",
    title="From Low Rank Gradient Subspace Stabilization to Low-Rank Weights: Observations, Theories, "
    "and Applications",
    authors="Jaiswal, Ajay and Wang, Yifan and Yin, Lu and Liu, Shiwei and Chen, Runjin and "
    "Zhao, Jiawei and Grama, Ananth and Tian, Yuandong and Wang, Zhangyang",
    year=2025,
    arxiv="2407.11239",
    venue="International Conference on Machine Learning",
)
TRP = Paper(
    key="xu2020trp",
    title="TRP: Trained Rank Pruning for Efficient Deep Neural Networks",
    authors="Xu, Yuhui and Li, Yuxi and Zhang, Shuai and Wen, Wei and Wang, Botao and Qi, Yingyong and "
    "Chen, Yiran and Lin, Weiyao and Xiong, Hongkai",
    year=2020,
    arxiv="2004.14566",
    venue="International Joint Conference on Artificial Intelligence",
)
PELA = Paper(
    key="guo2024pela",
    title="PELA: Learning Parameter-Efficient Models with Low-Rank Approximation",
    authors="Guo, Yangyang and Wang, Guangzhi and Kankanhalli, Mohan",
    year=2024,
    arxiv="2310.10700",
    venue="IEEE/CVF Conference on Computer Vision and Pattern Recognition",
)
