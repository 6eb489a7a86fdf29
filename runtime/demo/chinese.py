"""The Chinese share of the demo corpus: greetings, facts, sums and short stories."""

from __future__ import annotations

import random

from .stories import expand

Pair = tuple[str, str]

KINDS = {
    "小猫": "喵喵叫", "小狗": "汪汪叫", "兔子": "", "小鸟": "唱歌", "老虎": "吼叫", "大象": "", "熊猫": "", "猴子": "吱吱叫",
    "小鸭": "嘎嘎叫", "狐狸": "", "小马": "嘶嘶叫", "小羊": "咩咩叫", "乌龟": "", "松鼠": "", "女孩": "", "男孩": "",
}  # fmt: skip
NAMES = ("小明", "小红", "小花", "乐乐", "贝贝", "亮亮", "欢欢", "天天", "丁丁", "米米")
THINGS = ("红球", "帽子", "风筝", "小鼓", "铃铛", "书", "钥匙", "围巾")
SPOTS = ("树下", "河边", "门后", "草地上", "花园里", "桥边", "床下", "山坡上")
FOODS = ("苹果", "面包", "草莓", "胡萝卜", "桃子", "饼干")

CAPITALS = {
    "中国": "北京", "法国": "巴黎", "英国": "伦敦", "德国": "柏林", "日本": "东京", "意大利": "罗马", "西班牙": "马德里",
    "俄罗斯": "莫斯科", "美国": "华盛顿", "韩国": "首尔", "泰国": "曼谷", "埃及": "开罗", "加拿大": "渥太华", "印度": "新德里",
}  # fmt: skip
COLOURS = {
    "天空": "蓝色", "草": "绿色", "雪": "白色", "太阳": "黄色", "香蕉": "黄色", "西红柿": "红色", "草莓": "红色", "胡萝卜": "橙色",
    "牛奶": "白色", "煤": "黑色", "大海": "蓝色", "树叶": "绿色", "巧克力": "棕色",
}  # fmt: skip
OPPOSITES = (
    ("大", "小"), ("高", "矮"), ("多", "少"), ("冷", "热"), ("快", "慢"), ("上", "下"), ("左", "右"), ("白天", "黑夜"),
    ("开", "关"), ("远", "近"), ("新", "旧"), ("高兴", "难过"), ("黑", "白"), ("早", "晚"),
)  # fmt: skip
FACTS = (
    ("一个星期有几天？", "一个星期有七天。"), ("一年有几个月？", "一年有十二个月。"), ("一年有几个季节？", "一年有四个季节：春、夏、秋、冬。"),
    ("哪个季节最冷？", "冬天最冷。"), ("哪个季节最热？", "夏天最热。"), ("太阳从哪里升起？", "太阳从东方升起。"), ("熊猫吃什么？", "熊猫吃竹子。"),
    ("兔子吃什么？", "兔子吃草和胡萝卜。"), ("蜜蜂做什么？", "蜜蜂采花蜜，做蜂蜜。"), ("鱼住在哪里？", "鱼住在水里。"), ("鸟住在哪里？", "鸟住在鸟巢里。"),
    ("一天有多少个小时？", "一天有二十四个小时。"), ("蜘蛛有几条腿？", "蜘蛛有八条腿。"), ("我们用什么看东西？", "我们用眼睛看东西。"),
)  # fmt: skip
SOCIAL = (
    (("你好！", "你好", "您好！", "嗨！"), ("你好！我能帮你做什么？", "你好！你想听一个故事吗？")),
    (("早上好！", "早上好"), ("早上好！",)),
    (("晚安！", "晚安"), ("晚安，祝你好梦！",)),
    (("你好吗？", "你今天好吗？"), ("我很好，谢谢！",)),
    (("你是谁？", "你叫什么名字？", "请介绍一下你自己。"), ("我是 naiad 的小演示模型，会讲小故事，也会回答简单的问题。",)),
    (("你会做什么？", "你能做什么？"), ("我会讲小故事，也会回答简单的问题。",)),
    (("你会说中文吗？", "你会中文吗？"), ("我会说一点中文。",)),
    (("谢谢！", "谢谢你！", "谢谢"), ("不客气！",)),
    (("再见！", "再见"), ("再见！欢迎再来。",)),
)  # fmt: skip
UNKNOWN_ASKED = (
    "今天天气怎么样？", "现在几点了？", "谁是美国总统？", "什么是量子力学？", "请写一段代码。", "请解释相对论。", "怎么做宫保鸡丁？", "黄金多少钱？",
    "上海有多少人？", "谁发明了电话？", "请写一封信。", "股票会涨吗？", "什么是人工智能？", "世界杯谁赢了？", "三百乘以五十是多少？", "李白是谁？",
    "请翻译这句话。", "怎么学习编程？", "月亮有多远？", "我的名字是什么？", "什么是经济学？", "长城有多长？", "推荐一部电影。", "头疼怎么办？",
)  # fmt: skip
UNKNOWN_ANSWER = "我是一个很小的模型，不知道这个。"

PLOTS = (
    (
        ("从前，有一只{kind}，名字叫{name}。", "很久以前，{spot}住着一只{kind}，它叫{name}。"),
        ("{name}有一个心爱的{thing}。", "它最喜欢它的{thing}。"),
        ("有一天，{thing}不见了。", "一天早上，{name}找不到{thing}了。"),
        ("{name}在{spot}找，可是没有找到。", "它找了很久，还是没有找到，难过得哭了。"),
        ("它的朋友{friend}来了，说：“别难过，我来帮你找。”", "{friend}看见了，说：“我们一起找吧！”"),
        ("最后，它们在{spot2}找到了{thing}。", "它们一起找，终于在{spot2}看见了{thing}。"),
        ("{name}高兴地说：“谢谢你，{friend}！”", "从此，{name}和{friend}成了最好的朋友。"),
    ),
    (
        ("从前，有一只{kind}，名字叫{name}。", "在{spot}，住着一只{kind}，它叫{name}。"),
        ("{name}没有朋友，常常一个人玩。", "它刚刚搬来，谁也不认识。"),
        ("有一天，它在{spot2}遇见了{friend}。", "一天，{friend}从{spot2}走过来。"),
        ("“你好，我们一起玩吧！”{friend}说。", "{friend}笑着说：“你愿意和我一起玩吗？”"),
        ("它们一起唱歌，一起跑步，玩得很开心。", "它们一起吃{food}，说了很多有趣的话。"),
        ("从那天起，{name}再也不孤单了。", "从此，它们每天都在一起玩。"),
    ),
    (
        ("从前，有一只{kind}，名字叫{name}。", "很久以前，有一只{kind}叫{name}。"),
        ("一天，{name}找到了很多{food}。", "秋天到了，{name}有一大篮{food}。"),
        ("路上，它遇见了{friend}。“我很饿。”{friend}说。", "{friend}来了，说：“我今天什么也没有吃。”"),
        ("{name}想了想，把一半{food}给了{friend}。", "{name}说：“来，我们一起吃吧！”"),
        ("它们坐在{spot}，吃得很香。", "两个朋友一边吃，一边笑。"),
        ("冬天，{name}没有吃的，{friend}给它送来了{food}。", "{friend}说：“谢谢你，你真是我的好朋友。”"),
        ("{name}明白了：分享让大家都快乐。", "从此，它们有什么都一起分享。"),
    ),
)
STORY_ASKED = (
    "请讲一个关于{kind}的故事。", "讲一个{kind}的故事。", "给我讲一个关于{kind}的故事吧。", "你能讲一个{kind}的故事吗？", "请写一个关于{kind}的小故事。",
    "我想听{kind}的故事。",
)  # fmt: skip
ANY_STORY_ASKED = ("请讲一个故事。", "讲个故事吧。", "给我讲一个故事。", "我想听故事。")


def story(rng: random.Random) -> Pair:
    """A request for a story, and the story."""
    kind = rng.choice(tuple(KINDS))
    name, friend = rng.sample(NAMES, 2)
    spot, spot2 = rng.sample(SPOTS, 2)
    slots = {
        "kind": kind, "name": name, "friend": friend, "spot": spot, "spot2": spot2, "thing": rng.choice(THINGS), "food": rng.choice(FOODS)
    }  # fmt: skip
    text = "".join(expand(rng.choice(beat), rng, slots) for beat in rng.choice(PLOTS))
    if kind.endswith("孩"):
        person = "她" if kind == "女孩" else "他"
        text = text.replace("一只", "一个").replace("它们", "他们").replace("它", person)
    return expand(rng.choice(STORY_ASKED if rng.random() < 0.85 else ANY_STORY_ASKED), rng, slots), text


def fact(rng: random.Random) -> Pair:
    """A simple question and its answer."""
    form = rng.randrange(6)
    if form == 0:
        country, city = rng.choice(tuple(CAPITALS.items()))
        return rng.choice(
            (f"{country}的首都是哪里？", f"{country}的首都在哪里？", f"哪里是{country}的首都？")
        ), f"{country}的首都是{city}。"
    if form == 1:
        thing, colour = rng.choice(tuple(COLOURS.items()))
        return rng.choice((f"{thing}是什么颜色？", f"{thing}是什么颜色的？")), f"{thing}是{colour}的。"
    if form == 2:
        pair = rng.choice(OPPOSITES)
        first, second = pair if rng.random() < 0.5 else pair[::-1]
        return f"“{first}”的反义词是什么？", f"“{first}”的反义词是“{second}”。"
    if form == 3:
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        return rng.choice((f"{a}加{b}等于几？", f"{a}加{b}是多少？", f"{a} + {b} 等于多少？")), f"{a} + {b} = {a + b}。"
    if form == 4:
        kind, sound = rng.choice([item for item in KINDS.items() if item[1]])
        return f"{kind}怎么叫？", f"{kind}{sound}。"
    return rng.choice(FACTS)


def social(rng: random.Random) -> Pair:
    """Greetings and questions about the model."""
    asked, answers = rng.choice(SOCIAL)
    return rng.choice(asked), rng.choice(answers)


def unknown(rng: random.Random) -> Pair:
    """A request out of the model's reach."""
    return rng.choice(UNKNOWN_ASKED), UNKNOWN_ANSWER


def exchange(rng: random.Random) -> Pair:
    """Any of the above."""
    return rng.choices((story, fact, social, unknown), (40, 35, 15, 10))[0](rng)
