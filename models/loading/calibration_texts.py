"""Public sentences to calibrate text models on, written for this purpose, so that nobody's own text is needed.

Calibration happens at the model's owner, before any user exists. A model for other matter (contracts, code, another
language) is better calibrated on typical public texts of that matter.
"""

from __future__ import annotations

TEXTS = (
    "Hello!",
    "Thank you very much.",
    "Where is the nearest train station?",
    "The meeting has been moved to Thursday at half past three.",
    "I have forgotten my password and cannot log in any more.",
    "Please send me the invoice for order 48213 by Friday.",
    "A large brown dog slept in the shade of the old oak tree.",
    "What is the difference between a virus and a bacterium?",
    "Interest rates rose by 0.25 percent, the third increase this year.",
    "She opened the window, looked at the sea and said nothing.",
    "How long does it take to boil an egg at high altitude?",
    "Our flight was delayed, the hotel was full, and the luggage went to Lisbon.",
    "for i in range(10): print(i * i)",
    "SELECT name, city FROM customers WHERE balance < 0 ORDER BY name;",
    "The patient reports mild headaches in the morning and no fever.",
    "No.",
    "Is this covered by the warranty?",
    "Water freezes at 0 degrees Celsius, or 32 degrees Fahrenheit.",
    "The company was founded in 1987 by two sisters from Bergen.",
    "Wo finde ich die Quittung für meine Bestellung?",
    "Quelle heure est-il à Montréal en ce moment ?",
    "El gato duerme debajo de la mesa de la cocina.",
    "This film is far too long, badly acted, and I enjoyed every minute of it.",
    "The worst customer service I have ever seen: three calls, no answer.",
    "Absolutely wonderful! Five stars, would buy again.",
    "Add two cups of flour, a pinch of salt and stir until smooth.",
    "The court dismissed the appeal for lack of standing.",
    "Dr. Amara Okafor will give the opening lecture on coastal erosion.",
    "Turn left after the bridge, then take the second exit at the roundabout.",
    "Why do leaves change their colour in autumn?",
    "Mix, bake, cool, serve.",
    "My phone number is 555-0142, extension 9.",
    "The quarterly report shows revenue of 4.2 million and costs of 3.9 million.",
    "A prime number has exactly two divisors: one and itself.",
    "He scored twice in the last five minutes and won the cup for his team.",
    "The app crashes every time I open the settings page on my tablet.",
    "Could you recommend a quiet restaurant for eight people?",
    "Light travels about 300,000 kilometres in one second.",
    "The novel follows three generations of a family of clockmakers.",
    "Error: connection refused (code 111), retrying in 5 s ...",
    "https://example.org/help?topic=billing&page=2",
    "I would like to cancel my subscription and get a refund.",
    "The mountain pass is closed between November and April because of snow.",
    "Photosynthesis turns carbon dioxide and water into sugar and oxygen.",
    "yes yes yes yes yes yes yes yes",
    "Can my landlord raise the rent in the middle of the lease?",
    "The violin is out of tune, the piano is not.",
    "To be honest, I am not sure; perhaps we should ask someone else?",
    "Tokyo, Nairobi, Lima, Oslo and Auckland.",
    "Rain is expected in the north, with sunny spells and light winds elsewhere.",
    "x = (-b + sqrt(b^2 - 4ac)) / 2a",
    "The museum holds more than ten thousand coins, some of them 2,500 years old.",
    "Please do not feed the birds.",
    "Her uncle, who had been a sailor, told the same story every winter.",
    "How do I change the delivery address after I have placed an order?",
    "The bridge, finished in 1932, carries eight lanes of traffic, two railway tracks and a footway.",
    "As soon as the kettle had boiled, the lights went out in the whole street, and for a while we sat in the dark "
    "and listened to the rain on the roof.",
    "In this paper we study how the price of electricity depends on wind, sunshine and the hour of the day, and "
    "we propose a simple model that explains most of what is seen.",
    "Bring: tent; two sleeping bags; matches; a map (1:25,000); and something to read!",
    "Once the form has been received, checked and signed by both parties, the deposit is returned within ten days.",
)


# What people type besides sentences, from one token to more than any length: longer ones are cut.
ODD = (
    "a",
    "7",
    "?",
    "Thanks",
    "No idea",
    "Call me later",
    "A" * 60,
    "!" * 700,
    "word " * 700,
    "the " * 700,
    "ha " * 9,
    "0 " * 350,
    "x" * 3000,
    "12 999 31.12.2031 0x1F 6e23 -40 007 1/3 88,000,000 +49 30 901820",
    "3 1 4 1 5 9 2 6 5 3 5 8 9 7 9 3 2 3 8 4 6 2 6 4 3 3 8 3 2 7 9 5",
    "@#$ %^& *() [] {} <> ~` |\\ _=+ ;: '\" ,. /? -- ... !!",
    "(((((((((((((((((((([[[[[[[[[[[[[[[[[[[[{{{{{{{{{{{{{{{{{{{{",
    "\U0001f642\U0001f44d\U0001f389 \u2764\ufe0f \U0001f680\U0001f697",
    "\u2192 \u2211 \u221e \u2260 \u00b1 \u20ac \u00a9 \u00b0 \u00bd \u266b",
    "Сегодня хорошая погода, и мы идём в парк.",
    "今日は雨が降っているので、家で本を読みます。",
    "今天天气很好我们去公园散步吧",
    "오늘은 날씨가 좋아서 산책을 갑니다",
    "الطقس جميل اليوم وسنذهب إلى الحديقة",
    "מזג האוויר נעים היום ואנחנו הולכים לים",
    "आज मौसम अच्छा है और हम बाज़ार जा रहे हैं",
    "Σήμερα ο καιρός είναι καλός και πάμε βόλτα",
    "วันนี้อากาศดีมาก เราไปเดินเล่นกัน",
    "Çok güzel bir gün, żółta łódka, čtyři říčky, Þórður ætlar",
    "tHe qUiCk zzkq wvxj plorf GRBLX; mnnnng ~ kjhgfdsa",
)

_SCRIPTS = (0x391, 0x410, 0x5D0, 0x627, 0x905, 0xE01, 0x3041, 0x4E00, 0xAC00)


def _letters(first: int, words: int = 200) -> str:
    """Words of no language, of the letters that follow `first`."""
    return " ".join("".join(chr(first + (7 * n * n + 5 * k) % 24) for k in range(2 + n % 5)) for n in range(words))


LONG = (
    " ".join(str(pow(7, n, 10 ** (1 + n % 12 + 1))) for n in range(1, 200)),
    " ".join(f"{_letters(first, 3)} {first * 7919}" for first in _SCRIPTS * 12),
    *(_letters(first) for first in _SCRIPTS),
    " ".join(ODD[::-1]),
)
"""Unusual from the first token to the last, whatever the length: digits, letters of nine scripts, and all of it."""


def calibration_texts(most: int = 60) -> list[str]:
    """Up to `most` texts: odd ones, sentences spread over the list, and some passages made of many of these."""
    passages = [" ".join(TEXTS[start : start + count]) for start, count in ((0, 60), (20, 40), (40, 12), (8, 6))]
    odd = [*_spread(LONG, most // 5), *_spread(ODD, most // 2 - most // 5)]
    sentences = _spread(TEXTS, max(1, most - len(odd) - len(passages)))
    return [*odd, *passages[: max(0, most - len(odd) - len(sentences))], *sentences]


def _spread(texts: tuple[str, ...], count: int) -> list[str]:
    step = max(1.0, len(texts) / max(1, count))
    return [texts[int(i * step)] for i in range(min(count, len(texts)))]
