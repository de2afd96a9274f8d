"""The vocabulary of the tiny model's texts. Values occur in no filler sentence and in no key."""


def _words(text: str) -> list[str]:
    return text.split()


def _phrases(text: str) -> list[str]:
    return " ".join(text.split()).split("|")


MODIFIERS = _words("""
harbour garden winter summer kitchen castle bridge market station library forest valley river
island tower bakery museum theatre school office village mountain desert meadow orchard cellar
attic workshop stable chapel palace prison hospital factory railway airport lighthouse windmill
quarry vineyard greenhouse nursery gallery studio laboratory observatory archive treasury armoury
brewery dairy foundry mill tavern hostel hotel shop warehouse depot dock canal tunnel gate
courtyard terrace balcony corridor basement rooftop chimney northern southern eastern western
upper lower inner outer royal secret silent ancient modern public private central distant hidden
sacred broken frozen golden wooden crystal iron stone paper leather summit coast border desk night
morning evening spring autumn monday weekend holiday festival council company army navy guild club
family captain doctor teacher farmer pilot
""")

NOUNS = _words("""
code password colour animal guard keeper owner leader symbol badge flag song flower tree fruit
dish drink stone metal word sign signal name title guest visitor winner champion mascot bird pet
fish emblem key token prize gift cargo crop spice perfume theme motto label secret answer project
team ship horse agent contact witness author expert clerk driver
""")

COLOURS = _words("""
amber crimson scarlet violet indigo turquoise magenta beige ivory maroon teal lavender silver
bronze copper emerald sapphire ruby coral khaki cobalt ochre charcoal mauve
""")

CREATURES = _words("""
otter badger falcon heron tiger panther leopard giraffe dolphin walrus penguin ostrich pelican
raven sparrow beaver hedgehog weasel lizard tortoise octopus lobster salmon trout zebra camel
donkey buffalo moose jackal hyena gorilla parrot pigeon magpie swallow beetle hornet spider
squirrel
""")

TOWNS = _words("""
Paris Berlin Madrid Lisbon Vienna Oslo Dublin Geneva Prague Warsaw Athens Cairo Nairobi Lagos
Delhi Tokyo Osaka Sydney Toronto Boston Chicago Denver Dallas Havana Lima Quito Bogota Milan
Venice Naples Bristol Oxford Cardiff Glasgow Hamburg Munich Zurich Lyon Porto Seville
""")

THINGS = _words("""
apple cherry lemon mango peach plum walnut almond ginger pepper saffron vanilla honey mustard
olive onion radish spinach turnip basil parsley thyme clover daisy tulip orchid thistle ivy willow
maple cedar birch poplar granite marble quartz topaz pearl opal garnet velvet cotton linen satin
anchor compass lantern hammer ladder needle ribbon saddle trumpet violin drum flute harp comet
planet galaxy thunder rainbow blizzard pyramid dragon phoenix unicorn
""")

FIRST_NAMES = _words("""
Alice Martin Clara Tobias Ingrid Oscar Helen Victor Nora Felix Marta Hugo Agnes Simon Vera Conrad
Irene Jasper Louisa Edgar Sylvia Walter Beatrice Leonard Matilda Rupert Celia Gilbert Edith Rowan
""")

SURNAMES = _words("""
Fenn Calloway Brandt Lindqvist Quill Tesk Oduya Voss Pell Lamb Hartley Winslow Mercer Ashby Thorne
Kessler Novak Ferrer Moreau Rinaldi Okafor Tanaka Silva Larsen Donovan Whitlock Granger Pemberton
Stroud Abbott
""")

VALUES = (*COLOURS, *CREATURES, *TOWNS, *THINGS, *FIRST_NAMES)

SUBJECTS = _phrases("""
the old man|a young woman|the two sisters|my cousin|our neighbour|a tall stranger|the children|the
postman|the cook|a few students|the mayor|her brother|his aunt|the carpenter|a quiet boy|the
travellers|an old friend|the judge|the gardener|everyone|nobody|the musicians|a small crowd
""")

ACTIONS = _phrases("""
walked slowly|waited for an hour|talked about the weather|read a long letter|ate some bread|looked
at the sky|played cards|told a funny story|slept very well|drank hot tea|painted a small
picture|wrote in a notebook|listened to the radio|carried heavy boxes|repaired the roof|counted
the coins|cleaned the windows|sang an old tune|lost an umbrella|found a warm coat|took many
photographs|bought fresh vegetables|laughed for a while|made a simple plan|asked about the
road|opened a wide door|forgot the map|closed the shutters
""")

PLACES = _phrases("""
near the water|by the fire|in the street|under the big roof|behind the house|in the rain|on the
hill|at the corner|beside the wall|in a small room|along the path|across the field|at home|on a
long bench|in the square|before the storm|after dinner|with great care|for no reason|without a
word
""")

TIMES = _phrases("""
In the afternoon|Before noon|After breakfast|Last week|Late at dusk|Two days later|On most
days|Yesterday|At first|Some years ago|Later|Now and then|Once again|At midnight|Soon after|On the
same day
""")

REMARKS = _phrases("""
The air was cold and the road was long.|It rained until late.|Nothing else happened for some
time.|The clock on the wall had stopped.|Most people here know each other well.|The snow melted
and the grass grew again.|There was little to see and less to do.|A light wind came from the
sea.|The lamps were lit one by one.|Prices had risen again.|Dust lay on every shelf.|The train
came late, as usual.|It was a long and quiet day.|The dogs barked at the moon.|Some of this will
matter later.|No one could say why.
""")

HEADINGS = _phrases("""
Notes|Report|Overview|Details|Background|Summary|Diary|Things to know|First part|Second part|Other
matters|Facts|The records|Travel|Daily life|Weather|Miscellaneous
""")
