var e=`# Cold Storage Services Contract

Contract number TQ-3318

This contract is made between two companies. The first party is Tarnquist Provender Limited, a wholesaler of cheese and smoked fish, called the Customer in this contract. The second party is Ollerby Coldhouse Company, an operator of refrigerated warehouses, called the Provider in this contract. The contract was signed in the town of Marrowgate on 14 May 2031.

## 1. Purpose

1.1 The Customer needs a place to keep perishable goods between their arrival by rail and their sale to shops. The Provider owns such a place. The warehouse that serves this contract is the Lantern Street warehouse in Marrowgate.

1.2 The Provider will receive the goods, store them at the agreed temperatures, keep a true record of them, and load them onto the Customer's vans on request.

1.3 Nothing in this contract makes either party the partner, agent or employee of the other.

## 2. Term

2.1 The contract begins on 1 June 2031. The contract ends on 31 May 2034, unless it is ended earlier under section 11.

2.2 The parties may renew the contract once, for two years, by a letter that both of them sign. A party that wishes to renew must write to the other party at least 120 days before the end of the term.

## 3. Services

3.1 The Provider will keep three rooms for the Customer alone. The rooms are known as the North Room, the Cellar Room and the Glass Room.

3.2 The North Room holds hard cheese and is kept at 11 degrees Celsius. The Cellar Room holds soft cheese and is kept at 4 degrees Celsius. The Glass Room holds smoked fish and is kept at 1 degree Celsius. The Provider may let a room differ from its temperature by at most one degree, and for no longer than 30 minutes at a time.

3.3 The Provider will unload goods on every working day between six in the morning and eight in the evening. Goods that arrive outside these hours are unloaded on the next working day, unless the Customer has asked for a night unloading by noon of the day before.

3.4 The Provider will count the goods on arrival and send the count to the Customer within four hours. The Customer may be present at any count and may ask for a second count at its own cost.

3.5 The Provider will take stock of all the rooms on the last Friday of every month. The difference between the stock and the record must not be greater than one crate in a thousand.

## 4. Persons responsible

4.1 The contract manager for the Customer is Beatrix Hallam. The contract manager for the Provider is Gideon Stroud. Each contract manager may decide everyday matters alone, but may not change this contract.

4.2 The warehouse foreman is Nell Ashdown. She is the person to call when goods are late, damaged or missing. The Provider's engineer for refrigeration is Corwin Blythe.

4.3 A party that replaces one of these persons must tell the other party within ten working days.

## 5. Fees

5.1 The monthly fee for storage is 8,600 florins. The fee covers the three rooms, the electricity, the stock taking and the ordinary staff.

5.2 The fee for a night unloading is 275 florins for each vehicle. The fee for a second count is 90 florins. The fee for the disposal of spoiled goods is 40 florins for each crate.

5.3 The Customer paid a deposit of 17,200 florins when the contract was signed. The Provider will return the deposit within 45 days after the end of the contract, less any sum that the Customer still owes.

5.4 The fees stay the same during the first year. From the second year on, the Provider may raise the monthly fee once a year, on the first of June, by no more than 3 percent.

## 6. Payment

6.1 The Provider sends its invoice on the fifth day of every month. The Customer pays each invoice within 21 days after it has arrived.

6.2 A late payment bears interest at 6 percent a year, counted from the day after it was due.

6.3 If the Customer disputes part of an invoice, it must say so in writing within the time for payment, give its reasons, and pay the rest. The disputed part is handled under section 12.

## 7. Care of the goods

7.1 The goods remain the property of the Customer at all times. The Provider may not lend them, pledge them or use them as security for its own debts.

7.2 The Provider will keep a thermometer in each room that writes down the temperature every five minutes. The records of temperature are kept for seven years and are shown to the Customer on request.

7.3 If a room leaves its permitted temperature, the Provider must telephone the Customer within 20 minutes. The Provider must also send a written report on the cause within three working days.

7.4 No other goods may be kept in the Customer's rooms. In particular, no fruit, coffee or spices may be stored beside the cheese, which takes on their smell.

7.5 The Provider will clean each room twice a week. The detergent used for cleaning must be free of perfume.

## 8. Liability

8.1 The Provider is liable for goods that are lost, stolen or spoiled while they are in its care, unless the cause lay in the goods themselves or in an event that nobody could have prevented.

8.2 The liability of the Provider is limited to 250,000 florins for each event. This limit does not apply to damage that was caused on purpose or by gross carelessness.

8.3 The value of the goods is the price that the Customer paid for them, shown by its own invoices, and not the price at which it hoped to sell them.

8.4 A claim must be made in writing within 14 days after the Customer has learned of the damage. A late claim is lost.

## 9. Insurance

9.1 The Provider will insure the goods against fire, water, theft and the failure of the cooling plant. The insurer is Penhallow Mutual, and the number of the policy is PM-70455.

9.2 The insurance must cover at least 600,000 florins for each year. The Provider will send the Customer a copy of the policy every January.

9.3 If the insurance lapses, the Customer may take out a policy of its own and deduct the premium from the next invoice.

## 10. Confidential matters

10.1 Each party will keep secret what it learns about the prices, recipes, suppliers and customers of the other party. This duty lasts for five years after the end of the contract.

10.2 The duty does not cover facts that are already public, or that a court orders a party to disclose.

10.3 The Customer's schedule of deliveries is known inside the Provider's company by the code name Heron. It may be shown only to persons who need it for their work.

## 11. Ending the contract early

11.1 The Customer may end the contract by giving 90 days of notice in writing. The Provider may end the contract by giving 180 days of notice in writing. The Provider's notice is longer because the Customer would have to find and cool another warehouse.

11.2 Either party may end the contract at once if the other party becomes insolvent, or if it breaks an important duty and does not repair the breach within 15 days after a written warning.

11.3 If the Customer ends the contract during the first year, it pays a fee of 12,500 florins for early termination. No such fee is due later, and none is due when the Customer ends the contract for a breach by the Provider.

11.4 At the end of the contract the Customer has ten working days to collect its goods. After that time the Provider may sell them at a public auction, keep what it is owed, and send the remainder to the Customer.

## 12. Disputes

12.1 The contract managers will first try to settle a dispute by talking. If they have found no answer after 30 days, the dispute goes to a mediator. The mediator named by the parties is Judge Honora Pellew, retired.

12.2 If the mediation fails, the dispute is decided by the commercial court at Saltmere. The law of the Province of Eastmark governs this contract.

12.3 The Provider must go on storing the goods, and the Customer must go on paying the undisputed fees, while a dispute is open.

## 13. Notices

13.1 A notice under this contract must be in writing, in English, and signed. It counts as received two working days after it was posted, or on the same day when it was delivered by hand.

13.2 Notices to the Customer are sent to 22 Weaver's Row, Marrowgate. Notices to the Provider are sent to 5 Lantern Street, Marrowgate.

## 14. Last provisions

14.1 This contract, with its two annexes, is the whole agreement between the parties. Annex A lists the goods and Annex B shows the plan of the rooms. A change to the contract is valid only when both parties have signed it.

14.2 If one provision is void, the others remain in force, and the parties will replace the void one by a valid one that comes as near as possible to its purpose.

14.3 Neither party may transfer the contract to somebody else without the written consent of the other party.

14.4 Two copies were made, one for each party. The witness to the signatures was the notary Silvan Drake.

Signed for Tarnquist Provender Limited by its director, Leontine Abernoy.

Signed for Ollerby Coldhouse Company by its director, Fergus Tolliver.
`,t=`# Laboratory notebook 27

Project Thistledown: a lime plaster that dries in cold rooms. Bench 4, Fennimore Building. Kept by Isolde Marchetti.

## Day 1, Monday

The aim of the project is a lime plaster that sets in a cellar without cracking. Ordinary lime plaster sets slowly below ten degrees, and it often cracks when the heating is switched on afterwards. We want a plaster that sets at six degrees and that survives a quick rise to twenty.

The people on the project are four. I plan the tests and keep this notebook. Hamish Okoro mixes the plasters. Yevgenia Sloane runs the microscope. The head of the laboratory is Professor Linnea Carrow, who reads this notebook every Friday and signs it.

The lime comes from a kiln at Dunmorrow. The lime was delivered in a sealed steel drum with the batch number LM-406. The sand was washed twice and dried overnight at 110 degrees. The water is from the tap in the corridor, left to stand for a day so that the chlorine can escape.

I prepared the cold room. The cold room is held at 6 degrees and at a humidity of 78 percent. Two small fans keep the air moving. There is one thermometer at the door and one at the back wall.

We agreed on six samples. Each sample is a round tile, ten centimetres across and one centimetre thick. Sample A is plain lime and sand and serves as the control. Sample B contains casein from skimmed milk. Sample C contains chopped hemp fibre. Sample D contains ground brick. Sample E contains both casein and hemp fibre. Sample F contains ground brick and a little linseed oil.

I asked Hamish to make four tiles of each sample, so that one can be broken each week and one is left over for the microscope. That makes twenty-four tiles in all.

## Day 2, Tuesday

Hamish mixed all six plasters between nine and noon. The mixing was done by hand in a glass bowl, because the electric mixer traps too much air. He mixed each plaster for twelve minutes and let it rest for five.

Sample B foamed a little while it was mixed. We waited until the foam had gone down before we filled the moulds. Sample F was darker than the others and smelled of the oil.

The tiles were placed in the cold room at two in the afternoon. They lie on a slate shelf in the order of their letters.

We weighed every tile before it went in. The average weight of a fresh tile was 152 grams. The heaviest tile was one of sample D at 159 grams, and the lightest was one of sample C at 143 grams, which is what one expects from fibre.

Yevgenia cleaned the microscope and found that the small lamp was broken. She ordered a new lamp from the stores, and it should be here by Friday.

## Day 3, Wednesday

First look at the tiles, after one night. All of them are still soft at the centre. A fingernail leaves a mark on every tile except those of sample D.

I measured the temperature at the surface of each tile with the infrared thermometer. The plain tiles were at 6.2 degrees. The tiles of sample D were a little warmer, at 6.9 degrees, so the ground brick does react with the lime.

One tile of sample C has a lump of fibre on its upper side. Hamish says that the fibre was cut too long. From now on the fibre will be cut to eight millimetres and combed before use.

In the afternoon the door of the cold room was left open for a quarter of an hour by a visitor. The temperature rose to nine degrees and was back at six within forty minutes. I put a notice on the door.

## Day 4, Thursday

Weighed the tiles again. A tile loses weight as its water leaves and later gains a little as the lime takes up carbon dioxide from the air. All the tiles have lost weight, as they should. The control tiles have lost 9 grams on average. The tiles of sample F have lost only 4 grams, because the oil holds back the water.

I tested the acidity of the surface with drops of phenolphthalein. The drops turn pink where the lime has not yet set. Every tile turned pink at once, so nothing has set at the surface so far, not even sample D.

Yevgenia asked whether the slate shelf draws water out of the tiles from below. It is a good question. We lifted two tiles and found the slate dry under one and damp under the other. I decided to turn all the tiles over once a day.

## Day 5, Friday

The new lamp for the microscope has come and works well. Yevgenia looked at the spare tile of sample A and saw crystals of lime about two micrometres long, mostly in the pores near the surface.

Professor Carrow read the notebook and asked for a second control. She is right that we cannot separate the effect of the cold from the effect of the mixture without one. The second control is four plain tiles that are kept in the office at 20 degrees. We call it sample G.

Hamish mixed sample G after lunch from the same drum of lime. The tiles of sample G lie on a board on top of the bookcase, away from the window.

## Day 8, Monday

Nobody entered the cold room over the weekend. The recorder shows that the temperature stayed between 5.8 and 6.3 degrees.

First breaking test. We break one tile of each sample by pressing on its middle with a steel rod until it gives way, and we read the force from the dial. The press is the old green one in the workshop. The press was calibrated last spring, and its certificate carries the number KV-1182.

The results of the first week are these. Sample A broke at 31 newtons. Sample B broke at 38 newtons. Sample C broke at 44 newtons. Sample D broke at 67 newtons. Sample E broke at 52 newtons. Sample F broke at 29 newtons. Sample G was not tested, because it is younger than the rest.

So the brick is the strongest after one week, and the oil is the weakest. The tile of sample C did not fall apart after it had broken, because the fibres held the two halves together.

## Day 9, Tuesday

I looked at the broken faces with a hand lens. In sample A the outer two millimetres are pale and hard, and the inside is grey and soft. In sample D the whole face is of one colour. Sample B shows round holes, which must be left over from the foam.

Hamish thinks that the foam can be avoided if the casein is dissolved in warm water first. He made a small trial, and the foam was much less. The casein must be dissolved in water at 35 degrees, since hotter water makes it clot.

In the afternoon I checked the two thermometers against the glass thermometer of the laboratory. The one at the door reads correctly. The thermometer at the back wall reads 0.4 degrees too low. I wrote the correction on a label and stuck it to the wall. The earlier readings in this notebook come from the door and need no correction.

## Day 10, Wednesday

A small accident. Hamish splashed wet lime on his hand while he was cleaning the bowl. He rinsed it for ten minutes and has only a red patch. From today gloves and goggles are worn at the sink as well as at the bench.

The phenolphthalein test was repeated. The edges of sample D no longer turn pink. All the other tiles still do. Sample D was the first sample to set at the surface, and it did so on the eighth day after mixing.

## Day 11, Thursday

Yevgenia spent the day at the microscope. She looked at thin slices of samples B, C and D.

Slice B shows a film of casein around the grains of sand. The film is thin and even. Slice C shows that the lime does not stick to the hemp: there is a narrow gap around nearly every fibre. Slice D shows needles between the grains, which are longest close to the pieces of brick. The longest needle in slice D measured 14 micrometres.

She saved the pictures on the laboratory's disk. The folder with the microscope pictures is called Bluebell.

We talked about the gap around the hemp. Yevgenia suggested that the fibres be soaked in lime water before they are mixed in, so that crystals can grow on them. I will add a new sample for this. The new sample is called sample H, and it contains hemp fibre that has been soaked in lime water.

## Day 12, Friday

Hamish soaked the fibre for sample H overnight and mixed the plaster this morning. It was easier to spread than sample C, and there were no lumps.

Professor Carrow signed the notebook. She told us that the project will be shown to the building trust on the last day of the month. The trust owns the old cellars under the market hall, where the plaster is to be used. The person at the trust who will judge our plaster is the architect Dorothea Winslade.

## Day 15, Monday

Second breaking test, two weeks after mixing. Sample A broke at 46 newtons. Sample B broke at 61 newtons. Sample C broke at 58 newtons. Sample D broke at 83 newtons. Sample E broke at 79 newtons. Sample F broke at 35 newtons. The warm control, sample G, was broken after ten days and held 72 newtons.

The warm control is therefore far stronger than the cold control, although it is three days younger. The cold costs plain lime more than a third of its strength. Sample D and sample E are the only cold samples that are stronger than the warm control.

Sample F is a disappointment. It is weak, it smells, and it is still damp. We will keep its last tile for the microscope, but we will make no more of it.

## Day 16, Tuesday

The cracking test. This is the test that matters most. A tile is taken from the cold room and put straight into an oven at 20 degrees with dry air. We look for cracks after one hour, after six hours and after a day. We used the third tile of each of the first five samples.

After one hour there was nothing to see on any tile. After six hours sample A had one crack, from the edge to the middle, and sample D had three short cracks on its upper side. Samples B, C and E had none.

## Day 17, Wednesday

The oven tiles after a full day. Sample A has two cracks. Sample B has one hair crack, visible only under the lens. Sample C has no cracks. Sample D has seven cracks, and one of them goes through the whole tile. Sample E has no cracks.

This is a clear result. The brick makes the plaster strong but brittle. The fibre makes it tough. Of all the samples, only sample E is both strong enough and free from cracks. Our favourite is now sample E, with casein and hemp together.

I measured the width of the widest crack in sample D. The widest crack was 0.6 millimetres wide.

## Day 18, Thursday

Power failure in the whole building, from three in the morning until half past five. The cold room warmed up to 8.1 degrees. That should do no harm to tiles of this age, but I note it in case the next readings look strange.

The weights after sixteen days: all tiles now gain weight, which means that carbon dioxide is going in faster than water is coming out. The gain is greatest for sample D and least for sample F.

## Day 19, Friday

First breaking test of sample H, one week after mixing. Sample H broke at 57 newtons. The corresponding tile of sample C, with dry fibre, had held 44 newtons at the same age. Soaking the fibre in lime water therefore raises the strength by about thirty percent.

Yevgenia looked at the broken face. The gap around the fibres is gone. Small crystals sit on the hemp like frost on a wire. She was so pleased that she called everybody to the microscope.

Professor Carrow signed the notebook and asked the obvious question: why not put the soaked fibre into sample E? We will. The new mixture is called sample J. We skip the letter I, because it looks like the number one.

## Day 22, Monday

Hamish mixed sample J with everything that we have learned. The casein was dissolved in water at the right temperature, the fibre was cut short, combed and soaked overnight, and the plaster was mixed by hand. There was no foam and there were no lumps. He made eight tiles, of which four went into the cold room and four are kept for practice with the trowel.

Third breaking test of the old samples, three weeks after mixing. Sample A broke at 55 newtons. Sample B broke at 70 newtons. Sample D broke at 91 newtons. Sample E broke at 94 newtons. No tile of sample C was left, since its last one went to the microscope. For the first time sample E is stronger than sample D.

## Day 24, Wednesday

The drum of lime is nearly empty. I ordered a second drum from the same kiln. The second drum carries the batch number LM-431. We must not mix the two batches in one test, so all tiles of sample J are from the first drum.

A practical trial on a real wall: Hamish spread the practice plaster of sample J on a square metre of old brick in the basement, where it is about seven degrees. It held on the wall without sliding, and he could smooth it for forty-five minutes before it became too stiff. The masons whom we asked want at least half an hour, so this is enough.

## Day 29, Monday

First breaking test of sample J, one week after mixing. Sample J broke at 76 newtons. That is the best value that any sample has reached after one week, better even than the brick.

We put two tiles of sample J into the oven at noon. After six hours there were no cracks.

## Day 30, Tuesday

The oven tiles of sample J after a full day: no cracks, not even under the lens. The wall in the basement is hard at the surface and shows no cracks either. The drops of phenolphthalein stay clear at its upper edge and turn faintly pink lower down, where the wall is damp.

We wrote the recipe down for the trust. The recipe is three parts of sand to one part of lime, with two percent of casein and one percent of soaked hemp fibre. The cost of the materials is 3.70 crowns for each square metre. Plain lime plaster costs about 2.90 crowns for the same area.

## Day 31, Wednesday

We showed the work to the building trust. The architect pressed her thumb against the wall, scratched it with a key, and asked how it would behave in ten years. I said honestly that we do not know, because our oldest tile is a month old. She liked the answer better than I had feared.

The trust will let us plaster one cellar under the market hall in the autumn. The cellar chosen for the trial is known as the Cooper's Vault. It has four walls, a low ceiling and a temperature of seven degrees all the year round.

Conclusions of this notebook. First, cold alone costs plain lime plaster more than a third of its early strength. Second, ground brick gives strength but makes the plaster crack when it is warmed. Third, linseed oil is of no use. Fourth, casein and hemp together give both strength and toughness, and soaking the hemp in lime water makes it better still. Fifth, the sample to carry forward is sample J.

Things to do: measure the tiles again after three months, test the plaster with salt water, and find out whether the second drum of lime gives the same values. The work is continued in notebook 31, because numbers 28 to 30 belong to another bench. Closed by Isolde Marchetti and signed by Professor Carrow.
`,n=`# Log of the survey ship Halcyon Wren

Port Ellery to the Sable Bank and back. Kept by the first mate.

## Monday

06:10. We cast off from the coal berth at Port Ellery. The harbour master at Port Ellery is Ines Calloway, and she cleared us to sail under permit EL-44. The master of the ship is Captain Rowan Tesk, and I am the first mate, Marit Oduya. The chief engineer is Pavel Brandt, the cook is Osric Lamb, and the ship's doctor is Wilhelmina Voss.

We passed the Greyfin light. The keeper of the Greyfin light is Tobias Fenn, who signalled that fog lay to the north.

At noon the wind was light and came from the south-west. The radio call sign of the Halcyon Wren is Kestrel Nine. The call sign of our supply tender, the Dunlin, is Marble Four. Brandt found a weak bearing in the fuel pump and fitted the spare before dinner.

22:00. Fog as promised. We went slowly, with two men on watch and the bell ringing all night.

## Tuesday

The fog lifted with the sun. We saw eleven fishing boats to the east and waved to them.

09:15. We stopped at Cairnholm for water and fresh bread. The harbour master at Cairnholm is Lucan Brightwell. He charged us for the water and asked nothing for the bread.

Two scientists came aboard here. Doctor Anselm Quill studies the sea floor, and Doctor Petra Lindqvist studies seabirds. We left Cairnholm under permit CH-20. In the evening Lamb served mutton stew. The cat, Biscuit, stole a piece from the captain's plate and was forgiven.

## Wednesday

04:50. A squall came out of the west without warning and blew hard for most of an hour. We lost the small lifeboat and one deck lamp.

08:05. Seaman Jory Pell fell from the ladder and broke his left wrist. Doctor Voss set the bone and ordered him to rest for six days.

13:20. We reached the Sable Bank and dropped anchor in calm water. The first survey buoy was laid that afternoon and carries the code SB-17. The second survey buoy was laid an hour later and carries the code SB-52. Quill unpacked his instruments on the after deck. His winch is painted orange, so that nobody walks into it in the dark.

## Thursday

A clear and cold day. Quill took nine cores from the sea floor. The deepest core was labelled Core Juniper. The shortest core was labelled Core Bramble. Lindqvist counted birds until her hands were too cold to write.

In the afternoon the Dunlin came alongside with diesel and mail. The skipper of the Dunlin is Agnes Thorne. She took our letters away with her and promised to post them on Saturday.

20:40. The combination of the captain's safe was changed to 7-31-18, because the old one had been read aloud at dinner.

## Friday

The third survey buoy was laid at the north edge of the bank and carries the code SB-88.

10:25. We found a drifting boat, the Penny Royal, with nobody aboard. Her lamps were still warm. We took her in tow and told the coast station at Harrow Point. The officer on duty at Harrow Point is Lieutenant Sunniva Marsh. She told us that the crew of the Penny Royal had been picked up safely by a trawler.

In the evening Lamb baked a plum cake for Quill, whose birthday it was, and the captain sang.

## Saturday

We left the Sable Bank at first light, slowly because of the tow.

At two in the afternoon Brandt found water in the second fuel tank. He closed it and ran both engines from the third.

21:10. The password for the night watch is copper lantern. The password of last night was silver thimble, and it must not be used again.

## Sunday

The captain read the service on deck this morning. Pell held the book for him with his good hand.

13:40. We handed the Penny Royal back off Harrow Point. The owner of the Penny Royal is Casper Dunmore. He paid a salvage fee of 1,850 crowns. Voss reported that the medicine chest needs new bandages.

## Monday

We passed the Greyfin light again. Fenn asked for newspapers and we sent him six.

09:20. The pilot Henrike Sallow came aboard and took us into Port Ellery. We made fast at the stone pier, because a grain ship lay at our old berth.

The distance run on this voyage was 618 miles. The cores went to the institute at Veldmoor in a locked crate. The key of the crate is kept by Doctor Lindqvist. The next voyage begins in two weeks. Log closed at noon by Marit Oduya.
`,r=`# Notes

The lamps were lit one by one. The harbour code is amber. In the afternoon, the old man walked slowly near the water. A light wind came from the sea.

The lighthouse keeper is Clara Fenn. Some years ago, our neighbour wrote in a notebook at home. Nothing else happened for some time. The bakery owner is Tobias Hartley.

## Daily life

The children carried heavy boxes, and the cook ate some bread. We were told that the garden flower is orchid. Everyone listened to the radio after dinner. It rained until late.

- The castle animal is falcon.
- The market spice is saffron.
- The harbour guest is Beatrice.

My cousin told a funny story in the square. The clock on the wall had stopped. Remember that the library password is compass. Yesterday, the mayor asked about the road in the rain.

## Travel

The train came late, as usual. The travellers made a simple plan, and the postman found a warm coat. Note that the mountain winner is Oslo.

The island ship is phoenix. Some of this will matter later. A few students took many photographs on the hill. The museum metal is copper. It was a long and quiet day.
`,i={document:`contract.md`,title:`Cold Storage Services Contract TQ-3318`,questions:[{query:`When does the contract begin?`,answers:[`1 June 2031`]},{query:`At what temperature is the Cellar Room kept?`,answers:[`4 degrees Celsius`]},{query:`Who is the contract manager for the Provider?`,answers:[`Gideon Stroud`]},{query:`Who is the warehouse foreman?`,answers:[`Nell Ashdown`]},{query:`What is the monthly fee for storage?`,answers:[`8,600 florins`]},{query:`What deposit did the Customer pay when the contract was signed?`,answers:[`17,200 florins`]},{query:`What is the number of the insurance policy?`,answers:[`PM-70455`]},{query:`How many days of notice must the Provider give to end the contract?`,answers:[`180 days`]},{query:`Who is the mediator named by the parties?`,answers:[`Honora Pellew`]},{query:`Who was the witness to the signatures?`,answers:[`Silvan Drake`]}]},a={document:`lab_notebook.md`,title:`Laboratory notebook 27: a lime plaster for cold rooms`,questions:[{query:`Who is the head of the laboratory?`,answers:[`Linnea Carrow`]},{query:`What was the average weight of a fresh tile?`,answers:[`152 grams`]},{query:`At what temperature is the second control, sample G, kept?`,answers:[`20 degrees`]},{query:`What number does the certificate of the press carry?`,answers:[`KV-1182`]},{query:`By how much does the thermometer at the back wall read too low?`,answers:[`0.4 degrees`]},{query:`What is the folder with the microscope pictures called?`,answers:[`Bluebell`]},{query:`Who is the architect who will judge the plaster?`,answers:[`Dorothea Winslade`]},{query:`What is the batch number of the second drum of lime?`,answers:[`LM-431`]},{query:`At how many newtons did sample J break in its first breaking test?`,answers:[`76 newtons`]},{query:`Which cellar was chosen for the trial?`,answers:[`Cooper's Vault`]}]},o={document:`ships_log.md`,title:`Log of the survey ship Halcyon Wren`,demo:6,questions:[{query:`What is the radio call sign of the Halcyon Wren?`,answers:[`Kestrel Nine`]},{query:`Who is the harbour master at Port Ellery?`,answers:[`Ines Calloway`]},{query:`What is the call sign of the Dunlin?`,answers:[`Marble Four`]},{query:`Who is the harbour master at Cairnholm?`,answers:[`Lucan Brightwell`]},{query:`What is the code of the second survey buoy?`,answers:[`SB-52`]},{query:`Who is the skipper of the Dunlin?`,answers:[`Agnes Thorne`]},{query:`What is the combination of the captain's safe?`,answers:[`7-31-18`]},{query:`Who is the officer on duty at Harrow Point?`,answers:[`Sunniva Marsh`]},{query:`Who is the owner of the Penny Royal?`,answers:[`Casper Dunmore`]},{query:`What was the distance run on this voyage?`,answers:[`618 miles`]}]},s={document:`tiny_example.md`,title:`Notes`,questions:[{query:`What is the harbour code?`,answers:[`amber`]},{query:`What is the bakery owner?`,answers:[`Tobias Hartley`]},{query:`What is the garden flower?`,answers:[`orchid`]},{query:`What is the castle animal?`,answers:[`falcon`]},{query:`What is the market spice?`,answers:[`saffron`]},{query:`What is the library password?`,answers:[`compass`]},{query:`What is the island ship?`,answers:[`phoenix`]},{query:`What is the museum metal?`,answers:[`copper`]}]},c=Object.assign({"../../../examples/contract.md":e,"../../../examples/lab_notebook.md":t,"../../../examples/ships_log.md":n,"../../../examples/tiny_example.md":r}),l=Object.assign({"../../../examples/contract.json":i,"../../../examples/lab_notebook.json":a,"../../../examples/ships_log.json":o,"../../../examples/tiny_example.json":s});export{l as ABOUT,c as TEXTS};